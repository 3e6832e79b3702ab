//! A server whose answers may be broken: bodies that stop or drip, lengths that are not true.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, HeaderMap};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Sleep, sleep};

/// What is sent before a cut must have left the machine when the connection is closed.
const BEFORE_CUT: Duration = Duration::from_millis(20);

/// A request without its body: the Hub's clients send none.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD`.
    pub method: String,
    /// With its query.
    pub path: String,
    headers: HeaderMap,
}

impl Request {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// An answer, right or wrong.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers but `Content-Length`.
    pub headers: Vec<(String, String)>,
    /// The body, which is not sent to a `HEAD`.
    pub body: Vec<u8>,
    /// `Content-Length`, if it is not to be the body's.
    pub length: Option<u64>,
    /// No length: the body is chunked.
    pub chunked: bool,
    /// The connection is closed after so many bytes of the body.
    pub cut: Option<usize>,
    /// A pause before every piece of so many bytes but the first.
    pub drip: Option<(Duration, usize)>,
}

impl Reply {
    /// An answer with that status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    /// The same with one header more.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// The bytes of an answer on their way.
struct Sending {
    rest: Bytes,
    piece: usize,
    pause: Duration,
    /// Whether the body ends in a closed connection.
    cut: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            if self.rest.is_empty() {
                return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())));
            }
        }
        if self.rest.is_empty() && !self.cut {
            return Poll::Ready(None);
        }
        let n = self.piece.min(self.rest.len());
        let piece = self.rest.split_to(n);
        if self.rest.is_empty() && self.cut {
            self.timer = Some(Box::pin(sleep(BEFORE_CUT)));
        } else if !self.rest.is_empty() && !self.pause.is_zero() {
            self.timer = Some(Box::pin(sleep(self.pause)));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

fn response(reply: Reply) -> hyper::Response<Sending> {
    let mut response = hyper::Response::builder().status(reply.status);
    if !reply.chunked {
        response = response.header(CONTENT_LENGTH, reply.length.unwrap_or(reply.body.len() as u64));
    }
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let mut rest = Bytes::from(reply.body);
    let cut = reply.cut.filter(|n| *n < rest.len());
    if let Some(n) = cut {
        rest.truncate(n);
    }
    let (pause, piece) = reply.drip.unwrap_or((Duration::ZERO, usize::MAX));
    response.body(Sending { rest, piece, pause, cut: cut.is_some(), timer: None }).expect("a test's headers are legal")
}

/// A server on a port of its own, until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts one that gives `answer`'s replies, several at once.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(answer);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let (head, _) = request.into_parts();
                    let path = head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
                    let request = Request { method: head.method.to_string(), path, headers: head.headers };
                    let reply = answer(&request);
                    async move { Ok::<_, Infallible>(response(reply)) }
                });
                // An error is a client that went away, or a body that was to be broken.
                tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok() });
            }
        });
        Self { address, runtime: Some(runtime) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
