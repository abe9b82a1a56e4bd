//! Deserialization of sets. A duplicate entry is an error.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Deserializes a list without duplicates.
///
/// # Errors
/// If an entry occurs twice. The error names the entry.
pub fn distinct<'de, D, T>(deserializer: D) -> Result<BTreeSet<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord + Display,
{
    let list = Vec::deserialize(deserializer)?;
    set(list)
}

/// Deserializes a list of lists without duplicates.
pub(crate) fn each_distinct<'de, D, T>(deserializer: D) -> Result<Vec<BTreeSet<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord + Display,
{
    let lists: Vec<Vec<T>> = Vec::deserialize(deserializer)?;
    lists.into_iter().map(set).collect()
}

fn set<T: Ord + Display, E: Error>(list: Vec<T>) -> Result<BTreeSet<T>, E> {
    let mut set = BTreeSet::new();
    for item in list {
        if set.contains(&item) {
            return Err(E::custom(format!("{item} is named twice")));
        }
        set.insert(item);
    }
    Ok(set)
}
