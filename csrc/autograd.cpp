// Derivatives of every op, to any order: every op is linear in its input and in (values, alpha), and every derivative
// is one of the ops again, so the set is closed and no m x n matrix appears at any order. In C++, because to record a
// small call from Python takes several times as long as the call. Also what autocast does to them.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

namespace dctps {
namespace {

using at::Tensor;
using c10::IValue;
using Stack = std::vector<IValue>;
using Tensors = std::vector<Tensor>;  // undefined: none, which stands for zero

// What the derivative of an op knows. Places are those of the op's arguments.
struct Call {
  Stack arguments;
  std::vector<bool> needs;  // which arguments need a gradient
  Tensors gradients;        // of the outputs
};

struct Differentiable {
  const char* name;
  Tensors (*derivative)(const Call& call);  // the gradients of the first arguments, place by place
  bool keeps_tensors = true;                // else the derivative finds a tensor's last size in its place
};

Stack call(const char* name, Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack;
}

// ---- dct, idct, sparse_linear, its transpose, sddmm

template <const char* const& Adjoint>
Tensors transform_derivative(const Call& c) {
  return {call(Adjoint, {c.gradients[0], c.arguments[0]})[0].toTensor()};
}

// sparse_linear, its transpose and sddmm are each linear in both of their tensors, and each other's derivatives.
Tensor product(const char* name, const Call& c, const IValue& first, const IValue& second) {
  return call(name, {first, second, c.arguments[2], c.arguments[3], c.arguments[4]})[0].toTensor();
}

constexpr const char* kDct = "dctps_ext::dct";
constexpr const char* kIdct = "dctps_ext::idct";
constexpr const char* kSparse = "dctps_ext::sparse_linear";
constexpr const char* kTransposed = "dctps_ext::sparse_linear_transposed";
constexpr const char* kSddmm = "dctps_ext::sddmm";

Tensors sparse_linear_derivative(const Call& c) {
  return {c.needs[0] ? product(kTransposed, c, c.gradients[0], c.arguments[1]) : Tensor(),
          c.needs[1] ? product(kSddmm, c, c.gradients[0], c.arguments[0]) : Tensor()};
}

Tensors transposed_derivative(const Call& c) {
  return {c.needs[0] ? product(kSparse, c, c.gradients[0], c.arguments[1]) : Tensor(),
          c.needs[1] ? product(kSddmm, c, c.arguments[0], c.gradients[0]) : Tensor()};
}

Tensors sddmm_derivative(const Call& c) {
  return {c.needs[0] ? product(kSparse, c, c.arguments[1], c.gradients[0]) : Tensor(),
          c.needs[1] ? product(kTransposed, c, c.arguments[0], c.gradients[0]) : Tensor()};
}

// ---- the fused layers: one derivation for both, because both are y = op(x; values, alpha) + bias, and what follows
// these arguments, the geometry and the algorithm, is all that tells them apart.

struct Linear {
  static constexpr const char* kForward = "dctps_ext::dctps_linear";
  static constexpr const char* kBackward = "dctps_ext::dctps_linear_backward";
  static Tensor spread(const Tensor& bias) { return bias; }
};

struct Conv2d {
  static constexpr const char* kForward = "dctps_ext::dctps_conv2d";
  static constexpr const char* kBackward = "dctps_ext::dctps_conv2d_backward";
  static Tensor spread(const Tensor& bias) { return bias.view({-1, 1, 1}); }
};

using Mask = std::array<bool, 4>;  // of dx, dvalues, dalpha, dbias

IValue optional(const Tensor& tensor) { return tensor.defined() ? IValue(tensor) : IValue(); }

template <class Layer>
Tensor forward(const IValue& x, const IValue& values, const IValue& index, const IValue& alpha,
               const Stack& geometry) {
  Stack stack{x, values, index, alpha, IValue()};
  stack.insert(stack.end(), geometry.begin(), geometry.end());
  return call(Layer::kForward, std::move(stack))[0].toTensor();
}

template <class Layer>
Tensors backward(const IValue& dy, const IValue& x, const IValue& values, const IValue& index,
                 const IValue& alpha, const Stack& geometry, const Mask& mask) {
  Stack stack{dy, x, values, index, alpha};
  stack.insert(stack.end(), geometry.begin(), geometry.end());
  stack.emplace_back(c10::List<bool>{mask[0], mask[1], mask[2], mask[3]});
  const Stack results = call(Layer::kBackward, std::move(stack));
  Tensors gradients(4);
  for (size_t i = 0; i < 4; ++i) {
    if (mask[i]) gradients[i] = results[i].toTensor();
  }
  return gradients;
}

template <class Layer>
Tensors layer_derivative(const Call& c) {
  const Stack& a = c.arguments;  // x, values, index, alpha, bias, geometry
  const Tensors g = backward<Layer>(c.gradients[0], a[0], a[1], a[2], a[3], Stack(a.begin() + 5, a.end()),
                                    {c.needs[0], c.needs[1], c.needs[3], c.needs[4]});
  return {g[0], g[1], Tensor(), g[2], g[3]};
}

// The four outputs are linear in dy; dx is linear in (values, alpha), dvalues and dalpha are in x.
template <class Layer>
Tensors layer_double_derivative(const Call& c) {
  const Stack &a = c.arguments, geometry(a.begin() + 5, a.end() - 1);
  const IValue &dy = a[0], &x = a[1], &values = a[2], &index = a[3], &alpha = a[4];
  const auto mask = a.back().toBoolList();
  Tensors g(4);
  for (size_t i = 0; i < 4; ++i) {
    if (mask.get(i)) g[i] = c.gradients[i];
  }
  const bool has_dx = g[0].defined(), has_parameters = g[1].defined() || g[2].defined();
  const Tensor g_values = g[1].defined() ? g[1] : at::zeros_like(values.toTensor());

  Tensor g_dy, g_x, g_bias = g[3];
  Tensors of_parameters(4);
  if (c.needs[0]) {
    const auto add = [&](const Tensor& part) { g_dy = g_dy.defined() ? g_dy + part : part; };
    if (has_dx) add(forward<Layer>(g[0], values, index, alpha, geometry));
    if (has_parameters) add(forward<Layer>(x, g_values, index, optional(g[2]), geometry));
    if (g_bias.defined()) add(Layer::spread(g_bias).expand_as(dy.toTensor()));
  }
  if (c.needs[1] && has_parameters) {
    g_x = backward<Layer>(dy, x, g_values, index, optional(g[2]), geometry, {true})[0];
  }
  if (has_dx && (c.needs[2] || c.needs[4])) {
    of_parameters =
        backward<Layer>(dy, g[0], values, index, alpha, geometry, {false, c.needs[2], c.needs[4], false});
  }
  return {g_dy, g_x, of_parameters[1], Tensor(), of_parameters[2]};
}

// ---- how torch comes to know

constexpr Differentiable kOps[] = {
    {.name = kDct, .derivative = &transform_derivative<kIdct>, .keeps_tensors = false},
    {.name = kIdct, .derivative = &transform_derivative<kDct>, .keeps_tensors = false},
    {.name = kSparse, .derivative = &sparse_linear_derivative},
    {.name = kTransposed, .derivative = &transposed_derivative},
    {.name = kSddmm, .derivative = &sddmm_derivative},
    {.name = Linear::kForward, .derivative = &layer_derivative<Linear>},
    {.name = Linear::kBackward, .derivative = &layer_double_derivative<Linear>},
    {.name = Conv2d::kForward, .derivative = &layer_derivative<Conv2d>},
    {.name = Conv2d::kBackward, .derivative = &layer_double_derivative<Conv2d>},
};

// Runs the kernel below autograd: takes the arguments off the stack and leaves the results there.
void run(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack& stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, &stack);
}

// The node of any op: `tensors` are those of its arguments, in order, so that torch sees them.
class Recorded : public torch::autograd::Function<Recorded> {
 public:
  static constexpr bool is_traceable = true;

  static Tensors forward(torch::autograd::AutogradContext* context, size_t op_number,
                         const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack& stack,
                         at::TensorList tensors) {
    const Differentiable& known = kOps[op_number];
    if (known.keeps_tensors) context->save_for_backward(tensors.vec());
    context->set_materialize_grads(false);
    Stack others = stack;
    for (IValue& argument : others) {
      if (!argument.isTensor()) continue;
      argument = known.keeps_tensors ? IValue(true) : IValue(argument.toTensor().sym_size(-1));
    }
    context->saved_data["op"] = int64_t(op_number);
    context->saved_data["arguments"] = c10::ivalue::Tuple::create(std::move(others));
    run(op, keys, stack);
    Tensors results;
    for (const IValue& result : stack) results.push_back(result.toTensor());
    return results;
  }

  static Tensors backward(torch::autograd::AutogradContext* context, Tensors gradients) {
    const Differentiable& known = kOps[size_t(context->saved_data["op"].toInt())];
    const auto& arguments = context->saved_data["arguments"].toTupleRef().elements();
    Call call{.arguments = Stack(arguments.begin(), arguments.end()),
              .needs = std::vector<bool>(arguments.size()),
              .gradients = std::move(gradients)};
    const Tensors saved = context->get_saved_variables();
    const auto any = [](const Tensors& list) {
      return std::any_of(list.begin(), list.end(), [](const Tensor& tensor) { return tensor.defined(); });
    };
    std::vector<size_t> places;  // of the tensors
    for (size_t place = 0; place < call.arguments.size(); ++place) {
      if (known.keeps_tensors ? !call.arguments[place].isBool() : place > 0) continue;
      call.needs[place] = context->needs_input_grad(places.size());
      if (known.keeps_tensors) call.arguments[place] = saved[places.size()];
      places.push_back(place);
    }
    Tensors results(4);  // of op_number, op, keys and stack
    if (!any(call.gradients)) {
      results.resize(4 + places.size());
      return results;
    }
    const Tensors of_arguments = known.derivative(call);
    for (size_t place : places) {
      results.push_back(call.needs[place] ? of_arguments[place] : Tensor());
    }
    return results;
  }
};

template <size_t OpNumber>
void record(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const size_t count = op.schema().arguments().size();
  bool needed = false;
  for (const IValue& argument : torch::jit::last(*stack, count)) {
    if (!argument.isTensor()) continue;
    const Tensor& tensor = argument.toTensor();
    needed |= tensor.requires_grad();
    // Without this torch would take every tangent for zero.
    TORCH_CHECK_NOT_IMPLEMENTED(
        !tensor._fw_grad(/*level=*/0).defined(), op.schema().name(),
        ": forward-mode derivatives (torch.func.jvp, jacfwd, torch.autograd.forward_ad) are not implemented; "
        "use reverse mode: backward(), torch.autograd.grad, torch.autograd.functional");
  }
  if (!needed || !c10::GradMode::is_enabled()) return run(op, keys, *stack);
  Stack arguments = torch::jit::pop(*stack, count);
  Tensors tensors;
  for (const IValue& argument : arguments) {
    if (argument.isTensor()) tensors.push_back(argument.toTensor());
  }
  const Tensors results = Recorded::apply(OpNumber, op, keys, arguments, at::TensorList(tensors));
  stack->insert(stack->end(), results.begin(), results.end());
}

template <size_t... OpNumbers>
void register_all(torch::Library& library, std::index_sequence<OpNumbers...>) {
  (library.impl(kOps[OpNumbers].name, torch::CppFunction::makeFromBoxedFunction<&record<OpNumbers>>()), ...);
}

TORCH_LIBRARY_IMPL(dctps_ext, Autograd, library) {
  register_all(library, std::make_index_sequence<std::size(kOps)>());
}

// ---- autocast: the floating arguments become of its dtype, as for torch.nn.functional.linear

template <c10::DispatchKey Key, c10::DeviceType Device>
void cast(const c10::OperatorHandle& op, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard guard(Key);
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(Device);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    IValue& argument = (*stack)[i];
    if (argument.isTensor()) argument = at::autocast::cached_cast(dtype, argument.toTensor(), Device);
  }
  op.callBoxed(stack);
}

template <c10::DispatchKey Key, c10::DeviceType Device>
void register_casts(torch::Library& library) {
  for (const char* op : {kSparse, Linear::kForward, Conv2d::kForward}) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<&cast<Key, Device>>());
  }
}

TORCH_LIBRARY_IMPL(dctps_ext, AutocastCPU, library) {
  register_casts<c10::DispatchKey::AutocastCPU, c10::kCPU>(library);
}
TORCH_LIBRARY_IMPL(dctps_ext, AutocastCUDA, library) {
  register_casts<c10::DispatchKey::AutocastCUDA, c10::kCUDA>(library);
}

}  // namespace
}  // namespace dctps
