"""Updates a policy in one jitted function: (state, batch) -> (state, metrics)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from atgrpo_jax.arrays.finite_trees import all_finite
from atgrpo_jax.arrays.mesh import batch_sharding, host_sharding, parameter_shardings, replicated
from atgrpo_jax.arrays.spread import put
from atgrpo_jax.common.types import Batch
from atgrpo_jax.models.head import logprob_gap, table, token_loss
from atgrpo_jax.models.lora import LoraConfig, adapter_shapes, init_adapter
from atgrpo_jax.models.packed import Packed
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, exact_products, init_params, shapes_of
from atgrpo_jax.update.batch import answers, filled, map_filled, widened
from atgrpo_jax.update.loss import LARGEST
from atgrpo_jax.update.objectives import Objective
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.updates import STATE_FINITE


class PolicyState(NamedTuple):
    params: Any  # the trained part: all parameters, or an adapter
    opt_state: Any


class UpdateInputs(NamedTuple):
    """All that an update takes beside the state: NumPy arrays and floats, or arrays on the devices."""

    batch: Any  # Batch [A, B, T]; the micro-batches that are empty come last
    rate: Any = 1.0  # factor of the optimizer's learning rate
    reference: Any = None  # trained part of the policy that the KL term is to; None without that term
    base: Any = None  # the parameters that an adapter is on; None without an adapter


class Learner:
    """Builds and updates the PolicyStates of all policies with one architecture and kind.

    They share its programs. With ``lora`` the trained part is an adapter, and each call is given
    the parameters (``base``) that the adapter is on.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer: OptimizerConfig,
        objective: Objective,
        mesh: Mesh,
        lora: LoraConfig | None = None,
    ):
        self.model = model
        self._packed = Packed(model, mesh)
        self._optimizer = optimizer.build()
        self._objective = objective
        self._lora = lora
        self._largest: dict[tuple[int, int], int] = {}  # (B, T) -> the largest A so far
        params = shapes_of(model) if lora is None else adapter_shapes(model, lora.rank)
        shapes = PolicyState(params, jax.eval_shape(self._optimizer.init, params))
        self.shardings = computing = parameter_shardings(shapes, mesh, model.family.axes)
        if optimizer.offload:
            waiting = jax.tree.map(
                lambda s, sharding: host_sharding(sharding) if s.ndim else sharding,
                shapes.opt_state,
                computing.opt_state,
            )
            self.shardings = PolicyState(computing.params, waiting)
        self._computing = computing.opt_state
        self._offload = optimizer.offload
        self.shapes = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            self.shardings,
        )
        rows = batch_sharding(mesh)
        plain = replicated(mesh)
        self._inputs = inputs = UpdateInputs(rows, plain)
        self._jit_fresh = jax.jit(self._fresh, out_shardings=self.shardings.params)
        self._jit_start = jax.jit(self._optimizer.init, out_shardings=self.shardings.opt_state)
        self._jit_update = jax.jit(
            self._update,
            donate_argnums=0,
            in_shardings=(self.shardings, inputs),
            out_shardings=(self.shardings, plain),
        )
        # Two programs, for ``offload``: one would fetch the optimizer state before the gradients.
        self._jit_gradients = jax.jit(
            self._gradients,
            in_shardings=(computing.params, inputs),
            out_shardings=(computing.params, plain),
        )
        looking: Any = {"in_shardings": (computing.params, inputs), "out_shardings": plain}
        self._jit_logprobs = jax.jit(self._logprobs, **looking)
        self._jit_effective = jax.jit(self._effective_weights, **looking)
        self._jit_apply = jax.jit(
            self._apply,
            donate_argnums=0,
            in_shardings=(self.shardings, computing.params, plain),
            out_shardings=(self.shardings, plain),
        )

    def fresh(self, key: jax.Array) -> Any:
        """Returns random parameters, or an adapter that changes nothing."""
        return self._jit_fresh(key)

    def init(self, key: jax.Array) -> PolicyState:
        """Returns the state of a fresh policy."""
        return self.start_from(self.fresh(key))

    def start_from(self, params: Any) -> PolicyState:
        """Returns a state of these parameters (or this adapter) with a fresh optimizer."""
        return PolicyState(params, self._jit_start(params))

    def weights(self, params: Any, base: Any = None) -> PolicyWeights:
        """Returns the weights of a policy with this trained part."""
        return PolicyWeights(params) if self._lora is None else PolicyWeights(base, params, self._lora.scale)

    def update(self, state: PolicyState, inputs: UpdateInputs) -> tuple[PolicyState, dict[str, jax.Array]]:
        """Makes one optimizer step on the sum over all micro-batches; ``state`` is donated.

        Returns:
          The new state, and metrics as device arrays: weighted means over trained tokens; the loss;
          the gradient's norm; ``logprob_gap``, the largest |logprob - old logprob|; and
          ``updates.STATE_FINITE``, true if all numbers of the new state are finite.
        """
        inputs = self._on_devices(inputs)
        with jax.transfer_guard("disallow"):  # nothing else may move between the host and devices
            if not self._offload:
                return self._jit_update(state, inputs)
            grads, metrics = self._jit_gradients(state.params, inputs)
            state, finite = self._jit_apply(state, grads, inputs.rate)
            return state, metrics | finite

    def _on_devices(self, inputs: UpdateInputs) -> UpdateInputs:
        batch = self._widened(inputs.batch)
        host = UpdateInputs(batch, np.float32(inputs.rate))
        placed = put(host, self._inputs)
        return placed._replace(reference=inputs.reference, base=inputs.base)

    def compile(self, inputs: UpdateInputs) -> list[jax.stages.Compiled]:
        """Compiles the programs of ``update`` ahead of time. Takes what ``lower`` takes."""
        return [program.compile() for program in self.lower(inputs)]

    def lower(self, inputs: UpdateInputs) -> list[jax.stages.Lowered]:
        """Returns the programs of ``update`` as JAX lowers them, for inputs of these shapes.

        Arrays may be shapes, and the mesh's devices need not exist.
        """
        number = jax.ShapeDtypeStruct((), jnp.float32)
        inputs = inputs._replace(rate=number)
        if not self._offload:
            return [self._jit_update.lower(self.shapes, inputs)]
        gradients = self._jit_gradients.lower(self.shapes.params, inputs)
        return [gradients, self._jit_apply.lower(self.shapes, self.shapes.params, number)]

    def _widened(self, batch: Batch) -> Batch:
        """Pads A to the largest of this (B, T) so far: batches shrink as groups lose their signal,
        and should not recompile then. Empty micro-batches are not run."""
        A, B, T = batch.tokens.shape
        self._largest[B, T] = most = max(A, self._largest.get((B, T), 0))
        return widened(batch, most)

    def corrected(
        self, params: Any, inputs: UpdateInputs, most: float
    ) -> tuple[UpdateInputs, dict[str, float]]:
        """Replaces the batch's old logprobs by those of ``params``, and corrects its advantages.

        Advantages are multiplied by min(exp(logprob - the sampler's), most).

        Returns:
          The inputs with that batch, and over its trained tokens the weighted mean of that factor
          ("correction") and the largest |logprob - the sampler's| ("logprob_gap").
        """
        batch = inputs.batch
        logprobs_ABT = self.logprobs(params, inputs)
        trained = batch.trained
        counts_ABT = trained.weights > 0
        ratio_ABT = np.where(counts_ABT, logprobs_ABT - trained.old_logprobs, np.float32(0))
        factor_ABT = np.minimum(np.exp(np.minimum(ratio_ABT, LARGEST)), np.float32(most))
        trained = trained._replace(
            old_logprobs=np.where(counts_ABT, logprobs_ABT, trained.old_logprobs),
            advantages=trained.advantages * factor_ABT,
        )
        found = {
            "correction": float(np.average(factor_ABT, weights=trained.weights)),
            "logprob_gap": float(np.abs(ratio_ABT).max()),
        }
        return inputs._replace(batch=batch._replace(trained=trained)), found

    def logprobs(self, params: Any, inputs: UpdateInputs) -> np.ndarray:
        """Returns the logprobs [A, B, T] of the trained tokens, each at its own temperature."""
        found_ABT = self._jit_logprobs(params, self._on_devices(inputs))
        return np.asarray(found_ABT)[: len(inputs.batch.tokens)]

    def effective_weights(self, params: Any, inputs: UpdateInputs) -> np.ndarray:
        """Returns how much an update from ``params`` wants each trained token to be likelier.

        It is -d loss / d logprob [A, B, T], with entropies held fixed. Without clipping and at ratio 1
        that is the token's weight times its advantage.
        """
        found_ABT = self._jit_effective(params, self._on_devices(inputs))
        return np.asarray(found_ABT)[: len(inputs.batch.tokens)]

    def _fresh(self, key: jax.Array) -> Any:
        params = init_params(self.model, key)
        if self._lora is None:
            return params
        return init_adapter(params, key, self._lora.rank, self.model.family.adapted)

    def _logprobs(self, params: Any, inputs: UpdateInputs) -> jax.Array:
        weights = self.weights(params, inputs.base)

        def logprobs(micro):
            return self._packed.logprobs(weights, micro)[0]

        with exact_products(self.model.compute):
            return map_filled(logprobs, inputs.batch)

    def _effective_weights(self, params: Any, inputs: UpdateInputs) -> jax.Array:
        weights = self.weights(params, inputs.base)

        def of_micro(micro):
            trained = micro.trained
            logprobs_BT, entropy_BT = self._packed.logprobs(weights, micro)
            reference_BT = None
            if inputs.reference is not None:
                reference_BT, _ = self._packed.logprobs(self.weights(inputs.reference, inputs.base), micro)
            if self._objective.prepare is not None:
                trained = self._objective.prepare(logprobs_BT, trained, answers(micro))

            def loss(logprobs_BT):
                return self._objective.tokens(logprobs_BT, entropy_BT, reference_BT, trained)[0]

            return -jax.grad(loss)(logprobs_BT)

        with exact_products(self.model.compute):
            return map_filled(of_micro, inputs.batch)

    def _update(self, state: PolicyState, inputs: UpdateInputs) -> tuple[PolicyState, dict[str, jax.Array]]:
        grads, metrics = self._gradients(state.params, inputs)
        state, finite = self._apply(state, grads, inputs.rate)
        return state, metrics | finite

    def _apply(
        self, state: PolicyState, grads: Any, rate: jax.Array
    ) -> tuple[PolicyState, dict[str, jax.Array]]:
        opt_state = jax.device_put(state.opt_state, self._computing) if self._offload else state.opt_state
        updates, opt_state = self._optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: rate * u, updates))
        state = PolicyState(params, opt_state)
        return state, {STATE_FINITE: all_finite(state)}

    def _gradients(self, params: Any, inputs: UpdateInputs) -> tuple[Any, dict[str, jax.Array]]:
        """Returns the gradients of the sum over all micro-batches, and metrics."""
        batch, _, reference, base = inputs

        def logprobs(params, micro):
            return self._packed.logprobs(self.weights(params, base), micro)[0]

        def loss(params, micro):
            trained = micro.trained
            reference_BT = None if reference is None else logprobs(reference, micro)
            if self._objective.prepare is not None:
                own_BT = logprobs(jax.lax.stop_gradient(params), micro)
                trained = self._objective.prepare(own_BT, trained, answers(micro))
            weights = self.weights(params, base)
            hidden_BTD, head = self._packed.hidden(weights, micro)
            value, sums = token_loss(
                head,
                self._objective.tokens,
                table(weights.params),
                hidden_BTD,
                trained,
                reference_BT,
            )
            gap = sums.pop("logprob_gap")
            if self._objective.prepare is not None:  # which may have moved the old logprobs
                gap = logprob_gap(own_BT, micro.trained)
            return value, (sums | {"weight": jnp.sum(trained.weights)}, gap)

        def accumulate(a, carry):
            micro = jax.tree.map(lambda x: x[a], batch)
            (value, (sums, gap)), grads = jax.value_and_grad(loss, has_aux=True)(params, micro)
            totals, gap_so_far = carry
            return jax.tree.map(jnp.add, totals, (value, sums, grads)), jnp.maximum(gap_so_far, gap)

        first = jax.tree.map(lambda x: x[0], batch)
        with exact_products(self.model.compute):
            shapes = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, first)
            (value, (sums, gap)), grads = shapes
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), ((value, sums, grads), gap))
            (value, sums, grads), gap = jax.lax.fori_loop(0, filled(batch), accumulate, zeros)
        weight = jnp.maximum(sums.pop("weight"), 1e-20)
        metrics = {name: total / weight for name, total in sums.items()}
        metrics |= {"loss": value, "grad_norm": optax.tree.norm(grads), "logprob_gap": gap}
        return grads, metrics
