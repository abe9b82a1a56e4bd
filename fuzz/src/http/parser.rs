//! Requests as parsed by `dbs-uhttp`.

use std::io::Write;
use std::os::unix::net::UnixStream;

use dbs_uhttp::HttpConnection;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) verb: String,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

/// An incremental parser.
pub(super) struct Parser {
    feed: UnixStream,
    connection: HttpConnection<UnixStream>,
}

impl Parser {
    pub(super) fn new() -> Self {
        let (feed, fed) = UnixStream::pair().expect("a pair of sockets");
        fed.set_nonblocking(true).expect("a socket");
        Self {
            feed,
            connection: HttpConnection::new(fed),
        }
    }

    /// The requests that are complete after these bytes.
    pub(super) fn requests(&mut self, bytes: &[u8]) -> Vec<Request> {
        self.feed.write_all(bytes).expect("a socket");
        while self.connection.try_read().is_ok() {}
        let mut requests = Vec::new();
        while let Some(request) = self.connection.pop_parsed_request() {
            let body = request.body.as_ref().map(|body| body.raw().to_vec());
            requests.push(Request {
                verb: request.method().to_str().to_owned(),
                path: request.uri().get_abs_path().to_owned(),
                body: body.unwrap_or_default(),
            });
        }
        requests
    }
}
