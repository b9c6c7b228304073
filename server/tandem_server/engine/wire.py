"""Messages between the front end and a runner process: msgspec MessagePack over one ZeroMQ socket pair (ipc).

The front end owns text, the runner owns tokens. The front end binds a DEALER socket at an ipc address of its own for
each runner it starts; the runner connects a DEALER to it. Every message is one frame: a tagged union, so that a
decoder of the union type gives back the right struct. A runner begins with `Progress` messages and then `Loaded`, or
ends with `Died`; a runner that vanishes without `Died` was killed.
"""

import msgspec


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one request's tokens are chosen. Random numbers depend on `seed` and the token's position only."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    """Keeps the tokens nearest to the expected surprise that together reach this probability; 1 keeps all."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    """Always given; the front end draws one for a request that has none. 0 <= seed < 2**63."""
    min_tokens: int = 0
    """No stop token comes before so many tokens."""
    logit_bias: dict[int, float] = {}
    """Token id -> what is added to its logit."""
    bad_words: list[list[int]] = []
    """Runs of tokens that must not come: the last of each is impossible after the others."""
    logprobs: int | None = None
    """None: none are told. n >= 0: the chosen token's, and those of the n most likely ones."""


class Add(msgspec.Struct, frozen=True, tag="add", omit_defaults=True):
    """Run a request. The front end sends it only when a slot is free (admission is the front end's)."""

    request: int
    """Unique in the life of the runner."""
    prompt: list[int]
    max_tokens: int
    """At least 1; the front end has made sure that prompt and answer fit the context, unless `keep` is set."""
    sampling: Sampling
    stop_tokens: list[int] = []
    """Token ids that end the answer (end-of-sequence ids of the checkpoint among them, unless it is ignored)."""
    grammar: str = ""
    """What the answer must look like, as llguidance writes grammars; empty for anything."""
    salt: str = ""
    """Only requests with the same one share what the prefix cache holds: one a tenant, adapter or set of images."""
    keep: int | None = None
    """When the context is full: None ends the answer; else so many tokens of the prompt stay, half of what follows them
    is dropped, and the answer goes on (Ollama's `shift` and `num_keep`)."""
    context: int = 0
    """Tokens that the request's own context has where that is less than a slot's; 0: all."""


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Embed several token sequences; answered by one `Embedded`."""

    request: int
    inputs: list[list[int]]


class Abort(msgspec.Struct, frozen=True, tag="abort", omit_defaults=True):
    """Nobody waits for the request any more. Answered by a final `Tokens` row with finish `abort`."""

    request: int
    accepted: int = 0
    """Tokens of the answer that count; the prefix cache keeps none behind them."""


class Trace(msgspec.Struct, frozen=True, tag="trace"):
    """Tell what the last steps did and when. Answered by one `Traced`."""

    request: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process now; what runs is dropped."""


ToRunner = Add | Embed | Abort | Trace | Stop


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the load is."""

    phase: str
    done_bytes: int
    total_bytes: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model is resident and takes requests from now on."""

    task: str
    """`Generate` or `Embed`."""
    architecture: str
    parameters: int
    weight_bytes: int
    cache_bytes: int
    """Memory of the slots' contexts."""
    overhead_bytes: int
    """What the process takes beyond weights and contexts."""
    device: str
    """As people read it, such as `CPU (2 threads)` or the GPU's name."""
    device_kind: str
    """`CPU` or `GPU`."""
    dtype: str
    slots: int
    context_limit: int
    """What the model was made for."""
    context: int
    """What each slot really has."""
    context_reason: str
    """Why `context` is smaller than what was asked for; empty when it is not."""
    embedding_size: int
    engine_reason: str
    shifts: bool = True
    """Whether an answer may go on when the context is full (`Add.keep`)."""
    pool_tokens: int = 0
    """Tokens that all slots hold together, where that is told; less than `slots` contexts where they share a pool."""

    total_bytes: int = 0
    """Of the device's memory (a CPU's: RAM), measured once all is loaded, with what contexts and steps may take."""

    @property
    def shares(self) -> bool:
        """Whether a request that has a slot may have to wait for memory still."""
        return 0 < self.pool_tokens < self.slots * self.context


class TokenRow(msgspec.Struct, frozen=True, array_like=True):
    """What one step made for one request."""

    request: int
    tokens: list[int]
    """None, and no finish: where slots share memory, the request has its share of it now and begins."""
    finish: str | None
    """`stop` (a stop token; it is not among `tokens`), `length`, `abort`, or `error`; None while it goes on."""
    error: str | None = None
    logprobs: list[list[tuple[int, float]]] | None = None
    """For each of `tokens`: the chosen token's pair first, then the most likely ones, best first."""
    cached: int = 0
    """Tokens of the prompt that were not computed, for the prefix cache had them; the same in each row."""


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """The outcome of one step. The row with `finish` is the last that names its request: its slot is free again."""

    step: int
    rows: list[TokenRow]


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """Answer to `Embed`: little-endian float32, L2-normalised, `len(inputs) x size` in one run of bytes."""

    request: int
    size: int
    vectors: bytes
    error: str | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """Sent about once a second while steps run, and once when the runner falls idle."""

    steps: int
    """Steps since the start."""
    step_rate: float
    tokens: int
    busy: int
    device_idle_share: float
    """Share of the last second's busy time in which the device waited for the host."""
    cache_used: float | None = None
    """Share of the context memory that requests hold, 0 to 1; None: all that a slot has counts as used with it."""
    waiting: int = 0
    """Requests that hold a place here and wait for memory of the pool."""
    prefix_asked: int = 0
    """Prompt tokens of admitted requests since the start."""
    prefix_found: int = 0
    """Of those, how many the prefix cache had."""
    prefix_evicted: int = 0
    """Blocks that the prefix cache lost since the start, for their room was needed."""


class StepRecord(msgspec.Struct, frozen=True, array_like=True):
    """One step. Moments are seconds of the machine's monotonic clock, as `time.perf_counter` gives them."""

    step: int
    decoded: int
    """Sequences that got their next token."""
    prompt_tokens: int
    woken: bool
    """The engine had slept before it."""
    host: tuple[float, float, float, float, float, float]
    """Began to plan, planned, launched; asked for the outcome, knew it, had told the tokens."""
    device: tuple[float, float, float]
    """Began, came to the sampling, ended."""


class Traced(msgspec.Struct, frozen=True, tag="traced"):
    """Answer to `Trace`: the steps that are remembered, oldest first; none for models that work in no such steps."""

    request: int
    steps: list[StepRecord]


class Died(msgspec.Struct, frozen=True, tag="died"):
    """The runner's last words: why it ends."""

    cause: str
    reason: str = ""
    """A word for programs, such as DoesNotFit."""


FromRunner = Progress | Loaded | Tokens | Embedded | Traced | Stats | Died


class RunnerSpec(msgspec.Struct, frozen=True):
    """What a runner process is started with."""

    model: str
    """Name, for log lines."""
    path: str
    """Folder of the checkpoint on local disk."""
    address: str
    """ZeroMQ address to connect to."""
    task: str = "Auto"
    device: str = "CPU"
    """`CPU` or `GPU`, as the pod was told; never chosen silently."""
    dtype: str = "Auto"
    quantization: str = "None"
    """`None`, `Int8` or `Int4`: how the weights are held."""
    slots: int | None = None
    context: int | None = None
    """Tokens a slot; None: the model's own limit."""
    min_context: int = 256
    may_shrink: bool = True
    overlapped: bool = True
    threads: int | None = None
    shared_cache: bool = False
    """Slots draw on one pool of blocks instead of each having its whole context."""
    prefix_cache: bool = True
    cache_dtype: str = "Auto"
    """Of keys and values: that of the computation, or FP8."""
    device_index: int = 0
    """Which of the pod's GPUs."""
    memory_limit: int | None = None
    """Bytes that the runner may take in all, its overhead included; None: whatever the device has."""


_to_runner = msgspec.msgpack.Decoder(ToRunner)
_from_runner = msgspec.msgpack.Decoder(FromRunner)


def encode(message: ToRunner | FromRunner) -> bytes:
    """One frame."""
    return msgspec.msgpack.encode(message)


def decode_to_runner(frame: bytes) -> ToRunner:
    """Reads a frame that the front end sent. Raises msgspec.DecodeError for anything else."""
    message: ToRunner = _to_runner.decode(frame)
    return message


def decode_from_runner(frame: bytes) -> FromRunner:
    """Reads a frame that a runner sent. Raises msgspec.DecodeError for anything else."""
    message: FromRunner = _from_runner.decode(frame)
    return message
