//! Requests of a client (RFC 9112), as far as a front has to understand them: where one ends, and which are gated.

use std::fmt::Write;

use super::gate::GatedCall;

/// Longest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Longest body that is looked at, in bytes.
pub(super) const MAX_BODY_BYTES: usize = 1 << 20;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// Its length with the empty line.
    pub(super) len_bytes: usize,
    pub(super) body_bytes: usize,
    pub(super) gated: Option<GatedCall>,
    /// The client sends the body when it is told to.
    pub(super) expects: bool,
}

/// Why the bytes of a client cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("it is no HTTP request")]
    NotHttp,
    #[error("its head is too long")]
    HeadTooLong,
    #[error("the length of its body is not known")]
    NoLength,
    #[error("its body is too long")]
    BodyTooLong,
}

impl Head {
    /// The head that `bytes` begin with; `None` if more has to come.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, BadRequest> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let len_bytes = match request.parse(bytes) {
            Ok(httparse::Status::Complete(len_bytes)) => len_bytes,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD_BYTES => return Ok(None),
            Ok(httparse::Status::Partial) => return Err(BadRequest::HeadTooLong),
            Err(_) => return Err(BadRequest::NotHttp),
        };
        let values = |name: &'static str| {
            let headers = request.headers.iter();
            headers.filter(move |header| header.name.eq_ignore_ascii_case(name))
        };
        // cloud-hypervisor takes no bodies in chunks, and two lengths are a trick to hide a request in a body.
        if values("transfer-encoding").next().is_some() || values("content-length").count() > 1 {
            return Err(BadRequest::NoLength);
        }
        let length = values("content-length").next().map(|header| {
            let digits = std::str::from_utf8(header.value).ok().map(str::trim);
            let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|text| text.parse().ok())
        });
        let body_bytes = length.unwrap_or(Some(0)).ok_or(BadRequest::NoLength)?;
        let gated = GatedCall::of(
            request.method.unwrap_or_default(),
            request.path.unwrap_or_default(),
        );
        if gated.is_some() && body_bytes > MAX_BODY_BYTES {
            return Err(BadRequest::BodyTooLong);
        }
        Ok(Some(Self {
            len_bytes,
            body_bytes,
            gated,
            expects: values("expect").next().is_some(),
        }))
    }
}

/// The same head for a body of another length that comes at once.
pub(super) fn with_length(head: &[u8], body_bytes: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(head);
    let named = |line: &str, name: &str| {
        let key = line.split(':').next().unwrap_or_default();
        key.eq_ignore_ascii_case(name)
    };
    let kept = text.split("\r\n").filter(|line| {
        !line.is_empty() && !named(line, "content-length") && !named(line, "expect")
    });
    let mut out = String::new();
    for line in kept {
        out.push_str(line);
        out.push_str("\r\n");
    }
    // Writing to a String cannot fail.
    let _ = write!(out, "Content-Length: {body_bytes}\r\n\r\n");
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: &[u8] = b"PUT /api/v1/vm.add-device HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 12\r\n\r\n{\"path\":\"x\"}";

    #[test]
    fn a_head_is_found_when_it_is_complete() {
        let head = Head::parse(ADD).unwrap().unwrap();
        assert_eq!(head.gated, Some(GatedCall::AddDevice));
        assert_eq!(
            (head.len_bytes + head.body_bytes, head.expects),
            (ADD.len(), false)
        );
        assert_eq!(Head::parse(&ADD[..40]), Ok(None));
        let get = Head::parse(b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((get.gated, get.body_bytes), (None, 0));
    }

    #[test]
    fn what_would_hide_a_request_is_refused() {
        let with = |headers: &str| {
            let text = format!("PUT /api/v1/vm.pause HTTP/1.1\r\n{headers}\r\n");
            Head::parse(text.as_bytes())
        };
        for headers in [
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "content-length: 1, 2\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 99999999999999999999999\r\n",
        ] {
            assert_eq!(with(headers), Err(BadRequest::NoLength), "{headers}");
        }
        assert_eq!(Head::parse(b"hello\r\n\r\n"), Err(BadRequest::NotHttp));
        assert_eq!(
            Head::parse(&vec![b'A'; MAX_HEAD_BYTES]),
            Err(BadRequest::HeadTooLong)
        );
        let long = format!(
            "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
            MAX_BODY_BYTES + 1
        );
        assert_eq!(Head::parse(long.as_bytes()), Err(BadRequest::BodyTooLong));
    }

    #[test]
    fn another_length_leaves_the_rest_of_the_head() {
        let head = b"PUT /x HTTP/1.1\r\ncontent-length: 12\r\nExpect: 100-continue\r\nX: y\r\n\r\n";
        let new = with_length(head, 3);
        assert_eq!(new, b"PUT /x HTTP/1.1\r\nX: y\r\nContent-Length: 3\r\n\r\n");
    }
}
