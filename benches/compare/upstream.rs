//! The model behind the gateway: plain HTTP/1.1, one canned answer, and streams at a steady pace.
//!
//! It runs in the load's thread, so the two share a clock: every event of a stream carries the moment when it was sent.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep_until};

use crate::gauge::now;
use crate::script::{Event, answer, ending};
use crate::wire::{Body, Chunked, Head};

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    x-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n";

/// How streams go.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two events.
    pub every: Duration,
    /// Bytes of an event's text.
    pub text: usize,
}

/// What the upstream does, and has done.
pub struct Upstream {
    pub address: SocketAddr,
    pub pace: Cell<Pace>,
    /// Streams come to their end.
    pub ending: Cell<bool>,
    /// Events that were sent.
    pub sent: Cell<u64>,
    /// Requests that were answered.
    pub answered: Cell<u64>,
}

impl Upstream {
    /// Listens, and serves from now on.
    pub fn start() -> io::Result<Rc<Upstream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(4096)?;
        let pace = Pace { every: Duration::from_millis(20), text: 16 };
        let upstream = Rc::new(Upstream {
            address: listener.local_addr()?,
            pace: Cell::new(pace),
            ending: Cell::default(),
            sent: Cell::default(),
            answered: Cell::default(),
        });
        spawn_local(upstream.clone().listen(listener));
        Ok(upstream)
    }

    async fn listen(self: Rc<Self>, listener: TcpListener) {
        let whole = answer();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", whole.len());
        let whole: Rc<[u8]> = [head.as_bytes(), whole.as_bytes()].concat().into();
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (upstream, whole) = (self.clone(), whole.clone());
            // A gateway that hangs up has its reasons; what it owed the client is missed there.
            spawn_local(async move { drop(upstream.serve(stream, &whole).await) });
        }
    }

    async fn serve(&self, mut stream: TcpStream, whole: &[u8]) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::with_capacity(4096);
        loop {
            let Some(asked) = read_request(&mut stream, &mut buffer).await? else { return Ok(()) };
            if asked.stream {
                self.tell(&mut stream, asked.usage).await?;
            } else {
                stream.write_all(whole).await?;
            }
            self.answered.set(self.answered.get() + 1);
        }
    }

    async fn tell(&self, stream: &mut TcpStream, usage: bool) -> io::Result<()> {
        stream.write_all(STREAM_HEAD).await?;
        let mut event = Event::new(self.pace.get().text);
        let mut due = Instant::now();
        while !self.ending.get() {
            stream.write_all(event.stamped(now())).await?;
            self.sent.set(self.sent.get() + 1);
            due += self.pace.get().every;
            sleep_until(due).await;
        }
        stream.write_all(&ending(usage)).await
    }
}

/// What a request asks for.
struct Asked {
    stream: bool,
    usage: bool,
}

/// Reads one request and forgets it; none when the connection ended between two.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    buffer.clear();
    let head = loop {
        if let Some(head) = Head::of_request(buffer)? {
            break head;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let (mut begin, mut ended, mut seen) = (Vec::new(), Vec::new(), 0);
    let mut coding = Chunked::default();
    let mut piece = buffer.split_off(head.bytes);
    loop {
        // What is asked for stands at the body's beginning, or where a gateway has put it: at its end.
        let mut keep = |part: &[u8]| {
            seen += part.len();
            begin.extend_from_slice(&part[..part.len().min(256_usize.saturating_sub(begin.len()))]);
            ended.extend_from_slice(&part[part.len().saturating_sub(256)..]);
            ended.drain(..ended.len().saturating_sub(256));
        };
        match head.body {
            Body::Length(_) => keep(&piece),
            Body::Chunked => drop(coding.feed(&piece, &mut keep)?),
        }
        let over = match head.body {
            Body::Length(length) => seen >= length,
            Body::Chunked => coding.is_over(),
        };
        if over {
            break;
        }
        piece.clear();
        piece.reserve(32 << 10);
        if stream.read_buf(&mut piece).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let says = |what: &[u8]| [&begin, &ended].iter().any(|part| memchr::memmem::find(part, what).is_some());
    Ok(Some(Asked { stream: says(br#""stream":true"#), usage: says(br#""include_usage""#) }))
}
