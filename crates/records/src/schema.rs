//! The keys of a config and the type of each, taken from the default config, so that there is one list of them.

use crate::config::{ImportConfig, RunConfig};
use crate::error::{Error, Result, hint};
use crate::layers::{AUTO_KEYS, flatten, value_of};
use crate::names::{
    Device, Method, ModelName, OptimizerKind, Part, Precision, PruneScheduleKind, ScheduleKind, Stem,
    TemperatureScheduleKind,
};
use std::path::PathBuf;
use toml::{Table, Value};

/// The known keys, each with a value of its type.
pub(crate) struct Schema(pub(crate) Vec<(String, Value)>);

impl Schema {
    /// Reads the keys off the default config.
    pub(crate) fn new() -> Self {
        let mut config = RunConfig::default();
        config.data.split = Some(PathBuf::new());
        config.data.root = Some(PathBuf::new());
        config.model.init_from = Some(PathBuf::new());
        config.import = Some(ImportConfig::default());
        // The default config holds TOML types only; were it not so, every test of the layers would fail.
        Self(flatten(&Table::try_from(config).unwrap_or_default()))
    }

    pub(crate) fn kind(&self, origin: &str, key: &str) -> Result<&Value> {
        value_of(&self.0, key).ok_or_else(|| Error::UnknownKey {
            origin: origin.to_owned(),
            key: key.to_owned(),
            hint: hint(key, self.0.iter().map(|(k, _)| k.as_str())),
        })
    }

    /// Checks keys, types and names; whole numbers become floats where floats are meant.
    pub(crate) fn check(&self, origin: &str, values: &[(String, Value)]) -> Result<Vec<(String, Value)>> {
        let check = |(key, value): &(String, Value)| Ok((key.clone(), self.check_one(origin, key, value)?));
        values.iter().map(check).collect()
    }

    fn check_one(&self, origin: &str, key: &str, value: &Value) -> Result<Value> {
        let kind = self.kind(origin, key)?;
        let wrong = |expected: String| Error::WrongValue {
            origin: origin.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            expected,
        };
        if AUTO_KEYS.contains(&key) && value.as_str() == Some("auto") {
            return Ok(value.clone());
        }
        let value = match (kind, value) {
            (Value::Float(_), Value::Integer(n)) => Value::Float(*n as f64),
            _ if kind.same_type(value) => value.clone(),
            _ => return Err(wrong(format!("expected {}", describe(kind)))),
        };
        if value.as_integer().is_some_and(|n| n < 0) {
            return Err(wrong("must not be negative".to_owned()));
        }
        if let Some(Err(e)) = value.as_str().and_then(|text| check_name(key, text)) {
            return Err(wrong(e.to_string()));
        }
        Ok(value)
    }

    /// Parses one value from text: TOML, or the bare text where a string is meant.
    pub(crate) fn parse(&self, origin: &str, key: &str, text: &str) -> Result<Value> {
        let kind = self.kind(origin, key)?;
        let bare = || Value::String(text.trim_matches('"').to_owned());
        let value = match kind {
            Value::String(_) => bare(),
            Value::Array(_) if !text.starts_with('[') => toml_value(&format!("[{text}]")).unwrap_or_else(bare),
            _ => toml_value(text).unwrap_or_else(bare),
        };
        self.check_one(origin, key, &value)
    }
}

/// Whether a text is one of the names that a key accepts; `None` for keys that take any text.
fn check_name(key: &str, text: &str) -> Option<Result<()>> {
    Some(match key {
        "method" => text.parse::<Method>().map(drop),
        "data.part" => text.parse::<Part>().map(drop),
        "model.name" => text.parse::<ModelName>().map(drop),
        "model.stem" => text.parse::<Stem>().map(drop),
        "train.device" => text.parse::<Device>().map(drop),
        "train.precision" => text.parse::<Precision>().map(drop),
        "optimizer.kind" => text.parse::<OptimizerKind>().map(drop),
        "schedule.kind" => text.parse::<ScheduleKind>().map(drop),
        "train.temperature_schedule" => text.parse::<TemperatureScheduleKind>().map(drop),
        "prune.schedule" => text.parse::<PruneScheduleKind>().map(drop),
        _ => return None,
    })
}

fn describe(kind: &Value) -> &'static str {
    match kind {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list, for example [60, 80]",
        _ => "another type",
    }
}

/// The environment variable of a flag or key.
pub(crate) fn env_name(key: &str) -> String {
    format!("SDCLR_{}", key.replace(['.', '-'], "_").to_uppercase())
}

fn toml_value(text: &str) -> Option<Value> {
    format!("x = {text}").parse::<Table>().ok()?.remove("x")
}
