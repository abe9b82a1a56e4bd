//! Requests: bodies are read within limits and parsed strictly.

use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes};
use hyper::{HeaderMap, Method};
use serde::de::DeserializeOwned;

use super::connection::Held;
use super::fd_stream::PassedFds;

/// Largest body, in bytes. A VM with sixteen vCPUs and a hundred devices needs a twentieth of it.
const MAX_BODY_BYTES: usize = 512 << 10;
/// Time limit for the body.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Prefix of the paths of all calls.
const BASE: &str = "/api/v1/";

/// A request that is not a valid call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// Wrong method, missing body or unexpected body.
    Form,
    /// Unknown call.
    NoSuchCall,
    /// The body is too long.
    TooLong,
    /// The body did not arrive in time.
    TooSlow,
    /// Too many requests of this kind are open.
    TooMany,
    /// The body is not the JSON that the call expects; the text is the parse error.
    Json(String),
}

/// A complete request.
pub(super) struct HttpRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Descriptors that came with the request.
    pub(super) fds: PassedFds,
    pub(super) held: Held,
}

impl HttpRequest {
    /// The path of the call.
    pub(super) fn call(&self) -> Result<&str, BadRequest> {
        self.path.strip_prefix(BASE).ok_or(BadRequest::NoSuchCall)
    }

    /// Checks that the method is GET. A method that a call does not have is a bad request, as in cloud-hypervisor.
    pub(super) fn get(&self) -> Result<(), BadRequest> {
        self.expect_method(&Method::GET)
    }

    /// Checks that the method is PUT and that there is no body.
    pub(super) fn put_nothing(&self) -> Result<(), BadRequest> {
        self.expect_method(&Method::PUT)?;
        match self.body.is_empty() {
            true => Ok(()),
            false => Err(BadRequest::Form),
        }
    }

    /// Checks that the method is PUT and parses the body.
    pub(super) fn put_json<T: DeserializeOwned>(&self) -> Result<T, BadRequest> {
        self.expect_method(&Method::PUT)?;
        if self.body.is_empty() {
            return Err(BadRequest::Form);
        }
        parse(&self.body).map_err(BadRequest::Json)
    }

    pub(super) fn expect_method(&self, verb: &Method) -> Result<(), BadRequest> {
        match self.method == verb {
            true => Ok(()),
            false => Err(BadRequest::Form),
        }
    }
}

/// Reads a body within the limits of size and time.
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

/// Parses the value in `body`. The error names the position.
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
    fn an_unknown_field_is_reported_with_the_known_ones() {
        let error = parse::<DeviceConfig>(br#"{"path":"/x","p2pp":true}"#).unwrap_err();
        assert!(
            error.contains("unknown field `p2pp`, expected one of `path`, `id`, `p2p`"),
            "{error}"
        );
    }

    #[test]
    fn an_unsupported_field_is_named() {
        let json = br#"{"payload":{"kernel":"/k"},"devices":[{"path":"/x","iommu":true}]}"#;
        let error = parse::<VmConfig>(json).unwrap_err();
        assert!(
            error.starts_with("devices[0].iommu: this VMM does not have it"),
            "{error}"
        );
    }

    #[test]
    fn trailing_data_is_refused() {
        assert!(parse::<u64>(b"1 ").is_ok());
        assert!(parse::<u64>(b"1 2").is_err());
    }
}
