//! Merging what a user gave in several places into one [`RunConfig`].
//!
//! Precedence, highest first: command-line flag, `--set`, environment `SDCLR_*`, config file, preset, default.
//! Every key and type is checked here against the default config, so that a message can say where it came from.

use crate::config::RunConfig;
use crate::error::{Error, Result, hint};
pub use crate::ignored::ignored;
use crate::names::{Method, ModelName, OptimizerKind, Stem};
use crate::presets::PRESETS;
use crate::schema::{Schema, env_name};
use std::path::Path;
use toml::{Table, Value};

/// Command-line flags and the config keys that they set.
pub const FLAGS: &[(&str, &str)] = &[
    ("method", "method"),
    ("seed", "seed"),
    ("data", "data.source"),
    ("split", "data.split"),
    ("data-root", "data.root"),
    ("part", "data.part"),
    ("image-size", "data.image_size"),
    ("workers", "data.workers"),
    ("cache-mib", "data.cache_mib"),
    ("jpeg-scaling", "data.jpeg_scaling"),
    ("strict", "data.strict"),
    ("max-broken", "data.max_broken"),
    ("jitter-strength", "augment.strength"),
    ("blur-p", "augment.blur_p"),
    ("model", "model.name"),
    ("stem", "model.stem"),
    ("base-width", "model.base_width"),
    ("head-layers", "model.head_layers"),
    ("head-dim", "model.head_dim"),
    ("dual-bn", "model.dual_bn"),
    ("init-from", "model.init_from"),
    ("prune-rate", "prune.rate"),
    ("random-prune-rate", "prune.random_rate"),
    ("prune-schedule", "prune.schedule"),
    ("prune-rate-start", "prune.rate_start"),
    ("prune-ramp-epochs", "prune.ramp_epochs"),
    ("mask-save-every", "prune.mask_save_every_epochs"),
    ("epochs", "train.epochs"),
    ("batch-size", "train.batch_size"),
    ("temperature", "train.temperature"),
    ("temperature-schedule", "train.temperature_schedule"),
    ("temperature-min", "train.temperature_min"),
    ("temperature-max", "train.temperature_max"),
    ("temperature-period-epochs", "train.temperature_period_epochs"),
    ("focal-gamma", "train.focal_gamma"),
    ("boost", "boost.enabled"),
    ("boost-momentum", "boost.momentum"),
    ("boost-ops", "boost.n_ops"),
    ("boost-magnitude", "boost.magnitude"),
    ("device", "train.device"),
    ("precision", "train.precision"),
    ("threads", "train.threads"),
    ("log-every", "train.log_every_steps"),
    ("checkpoint-every", "train.checkpoint_every_epochs"),
    ("keep-every", "train.keep_every_epochs"),
    ("optimizer", "optimizer.kind"),
    ("lr", "optimizer.lr"),
    ("momentum", "optimizer.momentum"),
    ("weight-decay", "optimizer.weight_decay"),
    ("schedule", "schedule.kind"),
    ("warmup-epochs", "schedule.warmup_epochs"),
    ("min-lr", "schedule.min_lr"),
    ("milestones", "schedule.milestones"),
    ("gamma", "schedule.gamma"),
];

/// Keys whose default depends on other keys; the value `"auto"` asks for it.
pub(crate) const AUTO_KEYS: &[&str] = &[
    "augment.area_min",
    "augment.blur_p",
    "model.stem",
    "model.base_width",
    "model.head_layers",
    "model.dual_bn",
    "optimizer.lr",
    "optimizer.weight_decay",
    "schedule.warmup_epochs",
];

/// Keys that may be absent.
const OPTIONAL_KEYS: &[&str] =
    &["data.split", "data.root", "model.init_from", "import.file", "import.has_head", "import.knows_method"];

/// The flag that sets a config key, if one does.
pub fn flag_of(key: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(_, k)| *k == key).map(|(flag, _)| *flag)
}

/// The config key that a flag sets, if any.
pub fn key_of(flag: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(f, _)| *f == flag).map(|(_, key)| *key)
}

/// The default of a key as TOML text; `None` where it depends on other keys or there is none.
pub fn default_of(key: &str) -> Option<String> {
    let schema = Schema::new();
    let value = value_of(&schema.0, key).filter(|_| !AUTO_KEYS.contains(&key) && !OPTIONAL_KEYS.contains(&key))?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)).filter(|text| !text.is_empty())
}

/// Some keys and values, and where they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    origin: String,
    pub(crate) values: Vec<(String, Value)>,
    /// Values that count only if this method is chosen in the end.
    conditional: Vec<(Method, Vec<(String, Value)>)>,
}

impl Layer {
    /// A layer of dotted keys and values, for example from flags. `origin` begins its error messages.
    pub fn from_values(origin: impl Into<String>, values: Vec<(String, Value)>) -> Self {
        Self { origin: origin.into(), values, conditional: Vec::new() }
    }

    /// A layer from the text of a config file.
    ///
    /// # Errors
    /// [`Error::Toml`] with the line that cannot be parsed.
    pub fn from_toml(origin: impl Into<String>, text: &str) -> Result<Self> {
        let origin = origin.into();
        let table: Table = text.parse().map_err(|e| toml_error(&origin, text, &e))?;
        Ok(Self::from_values(origin, flatten(&table)))
    }

    /// A layer from a config file.
    ///
    /// # Errors
    /// [`Error::Read`] or [`Error::Toml`].
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::from_toml(path.display().to_string(), &text)
    }

    /// A layer from a named preset.
    ///
    /// # Errors
    /// [`Error::UnknownName`] with a did-you-mean.
    pub fn preset(name: &str) -> Result<Self> {
        let found = PRESETS.iter().find(|(n, _)| *n == name);
        let (_, text) = found.ok_or_else(|| Error::UnknownName {
            what: "preset",
            name: name.to_owned(),
            hint: hint(name, crate::presets::names()),
        })?;
        let mut layer = Self::from_toml(format!("preset {name}"), text)?;
        // How an experiment is judged is no part of a run's config.
        layer.values.retain(|(key, _)| !key.starts_with("experiment."));
        for &method in Method::ALL {
            let prefix = format!("when.{method}.");
            let (when, rest) = layer.values.into_iter().partition(|(k, _)| k.starts_with(&prefix));
            layer.values = rest;
            let strip = |(k, v): (String, Value)| (k[prefix.len()..].to_owned(), v);
            layer.conditional.push((method, Vec::into_iter(when).map(strip).collect()));
        }
        Ok(layer)
    }

    /// A layer from `SDCLR_*` environment variables: `SDCLR_EPOCHS` (a flag's name) or `SDCLR_TRAIN_EPOCHS` (a key).
    /// Also returns a warning for each `SDCLR_*` name that means nothing and is not in `other_names`.
    ///
    /// # Errors
    /// [`Error::WrongValue`] for a value of the wrong type.
    pub fn from_env(
        vars: impl IntoIterator<Item = (String, String)>,
        other_names: &[&str],
    ) -> Result<(Self, Vec<String>)> {
        let schema = Schema::new();
        let mut by_name: Vec<(String, &str)> = Vec::new();
        by_name.extend(schema.0.iter().map(|(key, _)| (env_name(key), key.as_str())));
        by_name.extend(FLAGS.iter().map(|(flag, key)| (env_name(flag), *key)));
        let (mut values, mut warnings) = (Vec::new(), Vec::new());
        let mut vars: Vec<_> = vars.into_iter().filter(|(n, _)| n.starts_with("SDCLR_")).collect();
        vars.sort();
        for (name, text) in vars {
            if other_names.contains(&name.as_str()) {
                continue;
            }
            match by_name.iter().find(|(n, _)| *n == name) {
                Some((_, key)) => {
                    let origin = format!("environment {name}");
                    // Variables are often switched by 1 and 0.
                    let text = match (schema.kind(&origin, key)?, text.as_str()) {
                        (Value::Boolean(_), "1") => "true",
                        (Value::Boolean(_), "0") => "false",
                        (_, text) => text,
                    };
                    values.push(((*key).to_owned(), schema.parse(&origin, key, text)?));
                }
                None => {
                    let near = nearest_variable(&name, by_name.iter().map(|(known, _)| known.as_str()));
                    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                    warnings.push(format!("environment variable {name} means nothing here{near}"));
                }
            }
        }
        Ok((Self::from_values("environment SDCLR_*", values), warnings))
    }

    /// A layer from flags (without dashes) and their texts.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] or [`Error::WrongValue`] naming the flag.
    pub fn from_flags(flags: &[(String, String)]) -> Result<Self> {
        let schema = Schema::new();
        let mut values = Vec::new();
        for (flag, text) in flags {
            let key = key_of(flag).unwrap_or(flag);
            values.push((key.to_owned(), schema.parse(&format!("--{flag}"), key, text)?));
        }
        Ok(Self::from_values("command line", values))
    }

    /// A layer from `--set KEY=VALUE` arguments. Values are TOML; a bare word is a string.
    ///
    /// # Errors
    /// [`Error::BadAssignment`], [`Error::UnknownKey`] or [`Error::WrongValue`].
    pub fn from_assignments(assignments: &[String]) -> Result<Self> {
        let schema = Schema::new();
        let mut values = Vec::new();
        for text in assignments {
            let bad = || Error::BadAssignment { text: text.clone() };
            let (key, value) = text.split_once('=').ok_or_else(bad)?;
            let (key, value) = (key.trim(), value.trim());
            schema.kind("--set", key)?;
            values.push((key.to_owned(), schema.parse("--set", key, value)?));
        }
        Ok(Self::from_values("--set", values))
    }

    /// Whether any value is given for a dotted key.
    pub fn has(&self, key: &str) -> bool {
        self.values.iter().any(|(k, _)| k == key)
    }
}

/// The variable that somebody may have meant. What all names begin with says nothing about how near they are.
fn nearest_variable<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rest = |name: &str| name.trim_start_matches("SDCLR_").to_owned();
    let scored = known.map(|known| (strsim::normalized_levenshtein(&rest(name), &rest(known)), known));
    // 0.6 keeps two slips in a word of five letters.
    scored.filter(|(score, _)| *score >= 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Merges layers, lowest precedence first, over the defaults; fills in what depends on other values; validates.
///
/// # Errors
/// [`Error::UnknownKey`] and [`Error::WrongValue`] naming the layer, or [`Error::Invalid`] from
/// [`RunConfig::validate`].
pub fn resolve(layers: &[Layer]) -> Result<RunConfig> {
    let config = merge(layers)?;
    config.validate()?;
    Ok(config)
}

/// [`resolve`] without the last check: for callers that have values of their own to add first.
///
/// # Errors
/// [`Error::UnknownKey`] and [`Error::WrongValue`] naming the layer.
pub fn merge(layers: &[Layer]) -> Result<RunConfig> {
    let schema = Schema::new();
    let mut checked = Vec::new();
    for layer in layers {
        checked.push((layer, schema.check(&layer.origin, &layer.values)?));
    }
    let method = checked.iter().rev().find_map(|(_, values)| value_of(values, "method"));
    let method: Method = method.and_then(Value::as_str).and_then(|m| m.parse().ok()).unwrap_or(Method::SdClr);
    let mut merged: Vec<(String, Value)> = schema.0.clone();
    merged.retain(|(key, _)| !AUTO_KEYS.contains(&key.as_str()) && !OPTIONAL_KEYS.contains(&key.as_str()));
    for (layer, values) in checked {
        overlay(&mut merged, values);
        for (_, values) in layer.conditional.iter().filter(|(m, _)| *m == method) {
            overlay(&mut merged, schema.check(&layer.origin, values)?);
        }
    }
    fill_auto(&mut merged, method);
    nest(merged.clone()).try_into().map_err(|e| misfit(layers, &schema, merged, &e))
}

/// The error of merged values that are no config: the first that is none among defaults, and who gave it.
fn misfit(layers: &[Layer], schema: &Schema, merged: Vec<(String, Value)>, error: &toml::de::Error) -> Error {
    let alone = |given: &(String, Value)| {
        let mut values = schema.0.clone();
        overlay(&mut values, vec![given.clone()]);
        nest(values).try_into::<RunConfig>().err()
    };
    let found = merged.into_iter().find_map(|given| Some((alone(&given)?, given)));
    let Some((error, (key, value))) = found else {
        return Error::Toml { origin: "config".to_owned(), message: error.message().to_owned() };
    };
    let origin = layers.iter().rev().find(|layer| layer.has(&key)).map_or("config", |layer| &layer.origin).to_owned();
    Error::WrongValue { origin, key, value: value.to_string(), expected: error.message().to_owned() }
}

/// Fills in the keys whose default depends on others.
fn fill_auto(merged: &mut Vec<(String, Value)>, method: Method) {
    let text = |merged: &[(String, Value)], key: &str| -> String {
        value_of(merged, key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let int = |merged: &[(String, Value)], key: &str| -> i64 {
        value_of(merged, key).and_then(Value::as_integer).unwrap_or_default()
    };
    let small_family = text(merged, "model.name").parse().is_ok_and(ModelName::is_cifar_family);
    let small = small_family || int(merged, "data.image_size") <= 64;
    let stem = if small { Stem::Small } else { Stem::ImageNet };
    let large_image = int(merged, "data.image_size") > 64;
    let (area_min, blur_p) = if large_image { (0.08, 0.5) } else { (0.1, 0.0) };
    add_missing(merged, "augment.area_min", Value::from(area_min));
    add_missing(merged, "augment.blur_p", Value::from(blur_p));
    let (lr, weight_decay) = match text(merged, "optimizer.kind").parse() {
        Ok(OptimizerKind::Adam) => (1e-3, 0.0),
        Ok(OptimizerKind::Lars) => (0.5, 1e-6),
        _ => (0.5, 1e-4),
    };
    let warmup = (int(merged, "train.epochs") as f64 / 10.0).min(10.0);
    add_missing(merged, "model.stem", Value::from(stem.as_str()));
    add_missing(merged, "model.base_width", Value::from(if small_family { 16 } else { 64 }));
    add_missing(merged, "model.dual_bn", Value::from(method == Method::SdClr));
    let dual = value_of(merged, "model.dual_bn").and_then(Value::as_bool) == Some(true);
    add_missing(merged, "model.head_layers", Value::from(if dual { 3 } else { 2 }));
    add_missing(merged, "optimizer.lr", Value::from(lr));
    add_missing(merged, "optimizer.weight_decay", Value::from(weight_decay));
    add_missing(merged, "schedule.warmup_epochs", Value::from(warmup));
}

fn add_missing(merged: &mut Vec<(String, Value)>, key: &str, value: Value) {
    if value_of(merged, key).is_none() {
        merged.push((key.to_owned(), value));
    }
}

fn overlay(merged: &mut Vec<(String, Value)>, values: Vec<(String, Value)>) {
    for (key, value) in values {
        merged.retain(|(k, _)| *k != key);
        let auto = AUTO_KEYS.contains(&key.as_str()) && value.as_str() == Some("auto");
        if !auto {
            merged.push((key, value));
        }
    }
}

fn toml_error(origin: &str, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    let origin = line.map_or_else(|| origin.to_owned(), |line| format!("{origin}:{line}"));
    Error::Toml { origin, message: error.message().to_owned() }
}

pub(crate) fn value_of<'a>(values: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    values.iter().find(|(k, _)| k == key).map(|(_, value)| value)
}

/// A table as dotted keys and leaf values; an empty table vanishes.
pub(crate) fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut values = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let inner = flatten(inner).into_iter();
                values.extend(inner.map(|(k, v)| (format!("{key}.{k}"), v)));
            }
            _ => values.push((key.clone(), value.clone())),
        }
    }
    values
}

/// The inverse of [`flatten`]. Keys have passed the schema, so no key is both a leaf and a table.
fn nest(values: Vec<(String, Value)>) -> Table {
    let mut root = Table::new();
    for (key, value) in values {
        insert(&mut root, &key, value);
    }
    root
}

fn insert(table: &mut Table, key: &str, value: Value) {
    let Some((head, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let entry = table.entry(head).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = entry {
        insert(inner, rest, value);
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
