"""What a decoder's configuration says of memory: its matrices as the load makes them, and the shape of its steps.

Between `config.py` and the arithmetic of `tandem_api.fit`, for the load and for whoever asks before there is a runner:
no torch here. `weights.py` makes the same matrices; a test holds both to the same byte for every family.
"""

from tandem_api.fit_steps import StepShape
from tandem_api.fit_weights import Inventory, Matrix
from tandem_server.engine.native.config import DecoderConfig, ExpertsConfig


def inventory_of(config: DecoderConfig) -> Inventory:
    """All matrices and vectors of a fused decoder."""
    family, hidden, layers = config.family, config.hidden, config.layers
    matrices = [
        Matrix(config.qkv_width, hidden, config.qkv_bias, layers),
        Matrix(hidden, config.heads * config.head_size, config.output_bias, layers),
    ]
    sparse = sum(layer.sparse for layer in config.layer_configs) if config.experts else 0
    if layers > sparse:
        matrices += [
            Matrix(2 * config.intermediate, hidden, config.mlp_bias, layers - sparse),
            Matrix(hidden, config.intermediate, config.mlp_bias, layers - sparse),
        ]
    if config.experts and sparse:
        matrices += _experts(
            config.experts, hidden, sparse, family.experts is not None and bool(family.experts.stacked)
        )
    table = Matrix(config.vocabulary, hidden)
    if not config.tied:
        matrices.append(table)
    norms = layers * (hidden * (4 if family.sandwich else 2) + 2 * config.head_size * family.qk_norm) + hidden
    sinks = layers * config.heads * family.sinks
    exact = norms + sinks if family.exact_norms else sinks
    return Inventory(table, tuple(matrices), config.tied, norms + sinks - exact, exact)


def _experts(experts: ExpertsConfig, hidden: int, layers: int, stacked: bool) -> list[Matrix]:
    count = layers * experts.count
    return [
        Matrix(experts.count, hidden, stacked, layers, exact=True),
        Matrix(2 * experts.intermediate, hidden, stacked, count),
        Matrix(hidden, experts.intermediate, stacked, count),
    ]


def step_shape_of(config: DecoderConfig) -> StepShape:
    """What the size of a step's intermediate results depends on."""
    switches = any(layer.rope.kind == "longrope" for layer in config.layer_configs)
    ropes = {layer.rope for layer in config.layer_configs}
    # Longrope's tables are there twice, for sequences on either side of its switch.
    turned = sum(2 * rope.rotated_size(config.head_size) * (2 if rope.kind == "longrope" else 1) for rope in ropes)
    return StepShape(
        hidden=config.hidden,
        qkv_width=config.qkv_width,
        intermediate=config.intermediate,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        vocabulary=config.vocabulary,
        windows=len({layer.window for layer in config.layer_configs}),
        plain_attention=config.plain_attention,
        turned=turned,
        switches=switches,
    )
