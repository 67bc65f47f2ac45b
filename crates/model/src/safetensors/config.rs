//! `config.json` and hyper-parameters: reading the one as the other, and writing it.

use serde_json::{Map, Value, json};
use tessera_core::{Filling, TokenId};

use super::ExportType;
use crate::arch::Activation;
use crate::file_error::{Fault, quoted};
use crate::hyper::{Architecture, HyperParams, MAX_LAYERS, every_nth_global, linear_factors};

/// `model_type`, class name and architecture.
const MODELS: [(&str, &str, Architecture); 5] = [
    ("llama", "LlamaForCausalLM", Architecture::Llama),
    ("qwen2", "Qwen2ForCausalLM", Architecture::Qwen2),
    ("gemma3_text", "Gemma3ForCausalLM", Architecture::Gemma3),
    ("llada", "LLaDAModelLM", Architecture::Llada),
    ("Dream", "DreamModel", Architecture::Dream),
];

/// Llama's names of sizes and LLaDA's for the same.
const LLADA_KEYS: [(&str, &str); 9] = [
    ("num_hidden_layers", "n_layers"),
    ("hidden_size", "d_model"),
    ("num_attention_heads", "n_heads"),
    ("num_key_value_heads", "n_kv_heads"),
    ("intermediate_size", "mlp_hidden_size"),
    ("max_position_embeddings", "max_sequence_length"),
    ("tie_word_embeddings", "weight_tying"),
    ("attention_bias", "include_qkv_bias"),
    ("hidden_act", "activation_type"),
];

/// What LLaDA's configuration may say of parts that other models of its code base have, and the values
/// that mean the model as it is.
const LLADA_PARTS: [(&str, &str); 2] = [("block_type", "llama"), ("layer_norm_type", "rms")];

/// An object of the configuration, with where it lies.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    within: &'a str,
    /// Other names for keys.
    names: &'static [(&'static str, &'static str)],
}

impl<'a> Fields<'a> {
    /// What the object calls `key`.
    fn own<'k>(&self, key: &'k str) -> &'k str {
        self.names.iter().find(|(usual, _)| *usual == key).map_or(key, |(_, own)| own)
    }

    fn field(&self, key: &str) -> String {
        match self.within {
            "" => quoted(self.own(key)),
            within => format!("{} in {}", quoted(key), quoted(within)),
        }
    }

    /// The value, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(self.own(key)).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> Fault {
        let mut text = found.to_string();
        if let Some((cut, _)) = text.char_indices().nth(60) {
            text.truncate(cut);
            text.push_str("...");
        }
        Fault::malformed(self.field(key), text, expected)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let float = value.as_f64().map(|float| float as f32).filter(|float| float.is_finite());
        float.map(Some).ok_or_else(|| self.wrong(key, value, "a finite number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    fn inner(&self, key: &'a str) -> Result<Option<Fields<'a>>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_object() {
            Some(object) => Ok(Some(Fields { object, within: key, names: &[] })),
            None => Err(self.wrong(key, value, "an object")),
        }
    }

    fn required<T>(&self, key: &str, got: Result<Option<T>, Fault>) -> Result<T, Fault> {
        let next = "config.json does not describe the whole model: fetch it again";
        got?.ok_or_else(|| Fault::missing(self.field(key), next))
    }

    /// Refuses a switch that is on: nothing here implements what it asks for.
    fn off(&self, key: &str) -> Result<(), Fault> {
        match self.flag(key)? {
            Some(true) => Err(Fault::unsupported(self.field(key), "true", "false")),
            _ => Ok(()),
        }
    }
}

/// Reads and checks the hyper-parameters.
pub(super) fn hyper_params(config: &Value) -> Result<HyperParams, Fault> {
    let Some(object) = config.as_object() else {
        return Err(Fault::malformed("document", "not an object", "an object"));
    };
    let mut c = Fields { object, within: "", names: &[] };
    let model = c.required("model_type", c.text("model_type"))?;
    let known = MODELS.iter().find(|(name, ..)| *name == model);
    let Some((_, _, arch)) = known.copied() else {
        let supported = MODELS.map(|(name, ..)| name).join(", ");
        return Err(Fault::unsupported(c.field("model_type"), quoted(model), supported));
    };
    let gemma = arch == Architecture::Gemma3;
    if arch == Architecture::Llada {
        c.names = &LLADA_KEYS;
        llada_parts(&c)?;
    }
    let c = c;
    activation(&c, arch)?;
    for key in ["attention_bias", "mlp_bias", "use_sliding_window", "use_bidirectional_attention"] {
        c.off(key)?;
    }

    let layers = c.required("num_hidden_layers", c.size("num_hidden_layers"))?;
    let hidden = c.required("hidden_size", c.size("hidden_size"))?;
    let heads = c.required("num_attention_heads", c.size("num_attention_heads"))?;
    let head_dim = match c.size("head_dim")? {
        Some(dim) => dim,
        None if gemma => 256,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let found = format_args!("{hidden}, with {heads} heads and no head_dim");
            return Err(Fault::malformed(c.field("hidden_size"), found, "a multiple of the heads"));
        }
    };
    let rope = rope(&c, arch, head_dim)?;
    let sliding_window = match gemma {
        true => Some(c.size("sliding_window")?.unwrap_or(4096)).filter(|window| *window > 0),
        false => None,
    };
    let local = match sliding_window {
        Some(_) => local_layers(&c, layers)?,
        None => vec![false; layers.min(MAX_LAYERS)],
    };
    let attention_width = match c.float("query_pre_attn_scalar")?.filter(|_| gemma) {
        Some(width) => width,
        None if gemma => 256.0,
        None => head_dim as f32,
    };
    let params = HyperParams {
        arch,
        layers,
        hidden,
        ffn: c.required("intermediate_size", c.size("intermediate_size"))?,
        heads,
        kv_heads: c.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        context: c.required("max_position_embeddings", c.size("max_position_embeddings"))?,
        vocab: c.required("vocab_size", c.size("vocab_size"))?,
        rope_base: rope.base,
        rope_base_local: rope.local,
        rope_factors: rope.factors,
        norm_eps: c.float("rms_norm_eps")?.unwrap_or(1e-6),
        sliding_window,
        local,
        attention_softcap: c.float("attn_logit_softcapping")?,
        logit_softcap: c.float("final_logit_softcapping")?,
        attention_scale: attention_width.sqrt().recip(),
        embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        qkv_bias: arch.has_biases(),
        tied: c.flag("tie_word_embeddings")?.unwrap_or(gemma),
        activation: arch.activation(),
        filling: filling(&c, arch)?,
    };
    params.check(&|name| c.field(config_key(name)))?;
    Ok(params)
}

/// How the model fills masks. LLaDA's row predicts its own token, Dream's the one after it.
fn filling(c: &Fields<'_>, arch: Architecture) -> Result<Option<Filling>, Fault> {
    if !arch.fills_masks() {
        return Ok(None);
    }
    let mask = c.required("mask_token_id", c.size("mask_token_id"))?;
    // A number that does not fit is refused as one beyond the vocabulary.
    let mask = TokenId::try_from(mask).unwrap_or(TokenId::MAX);
    Ok(Some(Filling { mask, shift: arch == Architecture::Dream, any_subset: false }))
}

/// Refuses what LLaDA's configuration can say and no LLaDA model is.
fn llada_parts(c: &Fields<'_>) -> Result<(), Fault> {
    for (key, expected) in LLADA_PARTS {
        if let Some(found) = c.text(key)?.filter(|found| *found != expected) {
            return Err(Fault::unsupported(c.field(key), quoted(found), quoted(expected)));
        }
    }
    for key in ["alibi", "include_bias", "attention_layer_norm", "scale_logits", "input_emb_norm"] {
        c.off(key)?;
    }
    match c.flag("rope")? {
        Some(false) => Err(Fault::unsupported(c.field("rope"), "false", "true")),
        _ => Ok(()),
    }
}

/// The non-linearity must be the architecture's own.
fn activation(c: &Fields<'_>, arch: Architecture) -> Result<(), Fault> {
    let (key, expected) = match arch.activation() {
        Activation::Silu => ("hidden_act", "silu"),
        Activation::GeluTanh => ("hidden_activation", "gelu_pytorch_tanh"),
    };
    match c.text(key)? {
        Some(found) if found != expected => {
            Err(Fault::unsupported(c.field(key), quoted(found), quoted(expected)))
        }
        _ => Ok(()),
    }
}

/// Which layers have the sliding window.
fn local_layers(c: &Fields<'_>, layers: usize) -> Result<Vec<bool>, Fault> {
    let Some(types) = c.get("layer_types") else {
        let every = match c.size("sliding_window_pattern")? {
            Some(every) => every,
            None => c.size("_sliding_window_pattern")?.unwrap_or(6),
        };
        return Ok(every_nth_global(layers, every));
    };
    let expected = "a list of \"sliding_attention\" and \"full_attention\"";
    let Some(types) = types.as_array() else {
        return Err(c.wrong("layer_types", types, expected));
    };
    let one = |ty: &Value| match ty.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(c.wrong("layer_types", ty, expected)),
    };
    types.iter().map(one).collect()
}

struct Rope {
    base: f32,
    local: Option<f32>,
    factors: Option<Vec<f32>>,
}

/// Rotary settings, in the older form (`rope_theta`, `rope_scaling`) and the newer one
/// (`rope_parameters`, by kind of layer where there are several kinds).
fn rope(c: &Fields<'_>, arch: Architecture, head_dim: usize) -> Result<Rope, Fault> {
    let gemma = arch == Architecture::Gemma3;
    let (mut base, mut local) = (c.float("rope_theta")?, c.float("rope_local_base_freq")?);
    let mut scaling = c.inner("rope_scaling")?;
    if let Some(parameters) = c.inner("rope_parameters")? {
        let global = parameters.inner("full_attention")?;
        if let Some(sliding) = parameters.inner("sliding_attention")? {
            local = sliding.float("rope_theta")?.or(local);
        }
        let global = global.unwrap_or(parameters);
        base = global.float("rope_theta")?.or(base);
        scaling = Some(global);
    }
    let base = base.unwrap_or(if gemma { 1e6 } else { 1e4 });
    let factors = match scaling {
        Some(scaling) => rope_factors(&scaling, base, head_dim)?,
        None => None,
    };
    Ok(Rope { base, local: gemma.then(|| local.unwrap_or(1e4)), factors })
}

fn rope_factors(s: &Fields<'_>, base: f32, head_dim: usize) -> Result<Option<Vec<f32>>, Fault> {
    let key = if s.get("rope_type").is_some() { "rope_type" } else { "type" };
    match s.text(key)?.unwrap_or("default") {
        "default" => Ok(None),
        "linear" => Ok(linear_factors(Some(s.required("factor", s.float("factor"))?), head_dim)),
        "llama3" => llama3_factors(s, base, head_dim).map(Some),
        other => {
            let supported = "\"default\", \"linear\", \"llama3\"";
            Err(Fault::unsupported(s.field(key), quoted(other), supported))
        }
    }
}

/// Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, and those between
/// blended by where the original context falls among their periods.
fn llama3_factors(s: &Fields<'_>, base: f32, head_dim: usize) -> Result<Vec<f32>, Fault> {
    let float = |key: &str| {
        let value = s.required(key, s.float(key))?;
        match value > 0.0 {
            true => Ok(f64::from(value)),
            false => Err(Fault::malformed(s.field(key), value, "above zero")),
        }
    };
    let (factor, original) = (float("factor")?, float("original_max_position_embeddings")?);
    let (low, high) = (float("low_freq_factor")?, float("high_freq_factor")?);
    if low >= high {
        return Err(Fault::malformed(s.field("low_freq_factor"), low, "below high_freq_factor"));
    }
    let pairs = head_dim.min(1 << 12) / 2;
    Ok((0..pairs)
        .map(|i| {
            let turns = f64::from(base).powf(2.0 * i as f64 / head_dim as f64);
            let periods = original / (2.0 * std::f64::consts::PI * turns);
            let keep = ((periods - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / (keep + (1.0 - keep) / factor)) as f32
        })
        .collect())
}

/// The name of a hyper-parameter in the configuration.
fn config_key(name: &'static str) -> &'static str {
    match name {
        "layers" => "num_hidden_layers",
        "hidden" => "hidden_size",
        "ffn" => "intermediate_size",
        "heads" => "num_attention_heads",
        "kv_heads" => "num_key_value_heads",
        "context" => "max_position_embeddings",
        "vocab" => "vocab_size",
        "norm_eps" => "rms_norm_eps",
        "rope_base" => "rope_theta",
        "rope_factors" => "rope_scaling",
        "attention_softcap" => "attn_logit_softcapping",
        "logit_softcap" => "final_logit_softcapping",
        "attention_scale" => "query_pre_attn_scalar",
        "local" => "layer_types",
        "mask" => "mask_token_id",
        other => other,
    }
}

/// The configuration of a model with these hyper-parameters.
pub(super) fn write(p: &HyperParams, ty: ExportType) -> Result<Value, Fault> {
    let model = MODELS.iter().find(|(.., arch)| *arch == p.arch);
    let Some((model_type, class, _)) = model else {
        return Err(Fault::unsupported("architecture", p.arch, Architecture::supported()));
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "torch_dtype": ty.torch_name(),
        "num_hidden_layers": p.layers,
        "hidden_size": p.hidden,
        "intermediate_size": p.ffn,
        "num_attention_heads": p.heads,
        "num_key_value_heads": p.kv_heads,
        "head_dim": p.head_dim,
        "max_position_embeddings": p.context,
        "vocab_size": p.vocab,
        "rope_theta": short(p.rope_base),
        "rms_norm_eps": short(p.norm_eps),
        "tie_word_embeddings": p.tied,
    });
    let mut set = |key: &str, value: Value| {
        config[key] = value;
    };
    match p.activation {
        Activation::Silu => set("hidden_act", "silu".into()),
        Activation::GeluTanh => set("hidden_activation", "gelu_pytorch_tanh".into()),
    }
    match p.rope_factors.as_deref() {
        None => {}
        Some([first, rest @ ..]) if rest.iter().all(|factor| factor == first) => {
            set("rope_scaling", json!({ "rope_type": "linear", "factor": short(*first) }));
        }
        Some(_) => {
            let supported = "none, or one factor for all (config.json has no place for others)";
            return Err(Fault::unsupported("rope_factors", "a table", supported));
        }
    }
    if p.arch == Architecture::Gemma3 {
        set("rope_local_base_freq", short(p.rope_base_local.unwrap_or(1e4)));
        set("sliding_window", p.sliding_window.unwrap_or(0).into());
        let kind = |local: &bool| if *local { "sliding_attention" } else { "full_attention" };
        set("layer_types", p.local.iter().map(kind).collect());
        // The width is what was rounded on the way to the scale.
        let width = p.attention_scale.powi(-2).round();
        set("query_pre_attn_scalar", short(width));
        set("attn_logit_softcapping", p.attention_softcap.map_or(Value::Null, short));
        set("final_logit_softcapping", p.logit_softcap.map_or(Value::Null, short));
    }
    if let Some(filling) = p.filling {
        if filling.shift != (p.arch == Architecture::Dream) {
            let supported = "LLaDA without, Dream with (config.json has no place for it)";
            return Err(Fault::unsupported("shifted predictions", filling.shift, supported));
        }
        set("mask_token_id", filling.mask.into());
    }
    if p.arch == Architecture::Llada
        && let Some(object) = config.as_object_mut()
    {
        for (usual, own) in LLADA_KEYS {
            if let Some(value) = object.remove(usual) {
                object.insert(own.to_owned(), value);
            }
        }
        for (key, value) in LLADA_PARTS {
            object.insert(key.to_owned(), value.into());
        }
    }
    Ok(config)
}

/// The shortest decimal that reads back as this f32, rather than its expansion as an f64.
fn short(value: f32) -> Value {
    let decimal = value.to_string().parse().unwrap_or(f64::from(value));
    serde_json::Number::from_f64(decimal).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
