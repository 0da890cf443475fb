//! A log level in messages: its number.

use log::LevelFilter;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(level: &LevelFilter, to: S) -> Result<S::Ok, S::Error> {
    (*level as usize).serialize(to)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<LevelFilter, D::Error> {
    let number = usize::deserialize(from)?;
    Ok(LevelFilter::iter().nth(number).unwrap_or(LevelFilter::Off))
}
