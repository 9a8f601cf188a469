//! What does each path answer?

use std::convert::Infallible;
use std::time::Duration;

use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::metrics::Metrics;
use crate::runtime::Runtime;
use crate::telemetry;

/// Maximum size of the request line and headers, in bytes; hyper accepts no smaller limit.
const LONGEST_HEAD: usize = 8192;
/// How long a request line and headers may take.
const HEAD_TIME: Duration = Duration::from_secs(1);
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers one request per connection. With more of them, a client could occupy its connection for
/// longer.
pub(super) async fn serve(stream: TcpStream, runtime: &Runtime) {
    let service = service_fn(async |request: Request<_>| {
        Ok::<_, Infallible>(answer(request.method(), request.uri().path(), runtime))
    });
    // If the client breaks off, there is no one to report it to.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Answers a request. For the method HEAD, hyper omits the body.
fn answer(method: &Method, path: &str, runtime: &Runtime) -> Response<String> {
    let (status, (name, value), body) = match path {
        "/metrics" | "/livez" | "/readyz" if method != Method::GET && method != Method::HEAD => (
            StatusCode::METHOD_NOT_ALLOWED,
            (ALLOW, "GET, HEAD"),
            String::new(),
        ),
        "/metrics" => (
            StatusCode::OK,
            (CONTENT_TYPE, Metrics::CONTENT_TYPE),
            runtime
                .metrics
                .encode(&runtime.target_status(), telemetry::lost_lines()),
        ),
        "/readyz" if runtime.lifecycle.stop.is_cancelled() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        }
        "/livez" | "/readyz" => text(StatusCode::OK, "ok\n"),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez and /readyz\n",
        ),
    };
    Response::builder()
        .status(status)
        .header(name, value)
        .body(body)
        .expect("these are a status and a header")
}

fn text(status: StatusCode, body: &str) -> (StatusCode, (HeaderName, &'static str), String) {
    (status, (CONTENT_TYPE, TEXT), body.to_string())
}
