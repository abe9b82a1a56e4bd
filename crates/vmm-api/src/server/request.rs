//! Requests: their bodies, read within limits and parsed strictly.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::{HeaderMap, Method};
use serde::de::DeserializeOwned;

use super::answer::BadRequest;
use super::connection::Held;
use super::riders::Riders;

/// Longest body, in bytes; a VM with sixteen vCPUs and a hundred devices needs a twentieth.
const MAX_BODY_BYTES: usize = 512 << 10;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(5);
/// What the paths of all calls begin with.
const BASE: &str = "/api/v1/";

/// A request, to its last byte.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What came with it.
    pub(super) riders: Riders,
    pub(super) held: Held,
}

impl Asked {
    /// The path of the call.
    pub(super) fn call(&self) -> Result<&str, BadRequest> {
        self.path.strip_prefix(BASE).ok_or(BadRequest::NoSuchCall)
    }

    /// The verb must be GET. A verb that a call does not have is a bad request, as cloud-hypervisor sees it.
    pub(super) fn get(&self) -> Result<(), BadRequest> {
        self.verb(&Method::GET)
    }

    /// The verb must be PUT, and there must be no body.
    pub(super) fn put_nothing(&self) -> Result<(), BadRequest> {
        self.verb(&Method::PUT)?;
        match self.body.is_empty() {
            true => Ok(()),
            false => Err(BadRequest::Form),
        }
    }

    /// The verb must be PUT, and the body JSON of this type.
    pub(super) fn put_json<T: DeserializeOwned>(&self) -> Result<T, BadRequest> {
        self.verb(&Method::PUT)?;
        if self.body.is_empty() {
            return Err(BadRequest::Form);
        }
        parse(&self.body).map_err(BadRequest::Json)
    }

    pub(super) fn verb(&self, verb: &Method) -> Result<(), BadRequest> {
        match self.method == verb {
            true => Ok(()),
            false => Err(BadRequest::Form),
        }
    }
}

/// All of a body, if it is not too long and does not take too long.
pub(super) async fn read<B>(body: B) -> Result<Bytes, BadRequest>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BadRequest::TooLong),
        Ok(Err(_)) => Err(BadRequest::Form),
        Err(_) => Err(BadRequest::TooSlow),
    }
}

/// The value in `body`, or where in it something is wrong and what.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            path => format!("{path}: {}", error.inner()),
        }
    })?;
    json.end().map_err(|error| error.to_string())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceConfig, VmConfig};

    #[test]
    fn an_unknown_field_is_named_with_the_known_ones() {
        let error = parse::<DeviceConfig>(br#"{"path":"/x","p2pp":true}"#).unwrap_err();
        assert!(
            error.contains("unknown field `p2pp`, expected one of `path`, `id`, `p2p`"),
            "{error}"
        );
    }

    #[test]
    fn what_this_vmm_lacks_is_named() {
        let json = br#"{"payload":{"kernel":"/k"},"devices":[{"path":"/x","iommu":true}]}"#;
        let error = parse::<VmConfig>(json).unwrap_err();
        assert!(
            error.starts_with("devices[0].iommu: this VMM does not have it"),
            "{error}"
        );
    }

    #[test]
    fn what_follows_the_value_is_refused() {
        assert!(parse::<u64>(b"1 ").is_ok());
        assert!(parse::<u64>(b"1 2").is_err());
    }
}
