//! The bytes of one upstream connection: a request going out piece by piece, and what came and was not used yet.
//!
//! It knows nothing of HTTP. Reading and writing go on side by side: an upstream may answer before it has read all.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::io::poll_read_buf;

use super::endpoint::Endpoint;
use crate::deadline::now;
use crate::descriptors;

/// Room that a read is given: what an event needs, and more once an answer fills it.
const ROOM: usize = 2 * 1024;
const WIDE: usize = 16 * 1024;
/// What the system takes in ahead of a reader that is slow: what waits there is counted late, if at all.
const AHEAD: usize = 256 * 1024;
/// Pieces that are written at once.
const PIECES: usize = 8;

/// A connection's two directions.
pub(super) struct Wire {
    stream: Stream,
    /// Read, and not used yet.
    pub(super) held: BytesMut,
    /// Still to be written.
    outgoing: VecDeque<Bytes>,
    unflushed: bool,
    /// The last read filled its room.
    wide: bool,
    /// When the upstream last took a byte.
    pub(super) moved: Instant,
    /// It took one since the request began.
    pub(super) touched: bool,
}

/// Plain or TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Opens a connection, with TLS where the endpoint has it.
    pub(super) async fn open(endpoint: &Endpoint) -> io::Result<Wire> {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        if descriptors::is_among_last(&tcp) {
            return Err(Errno::MFILE.into());
        }
        tcp.set_nodelay(true)?;
        sockopt::set_socket_recv_buffer_size(&tcp, AHEAD)?;
        let stream = match &endpoint.tls {
            None => Stream::Plain(tcp),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                Stream::Tls(Box::new(connector.connect(name.clone(), tcp).await?))
            }
        };
        let (held, outgoing) = (BytesMut::new(), VecDeque::new());
        Ok(Wire { stream, held, outgoing, unflushed: false, wide: false, moved: now(), touched: false })
    }

    /// Begins a request.
    pub(super) fn begin(&mut self, segments: &[Bytes]) {
        self.outgoing.extend(segments.iter().cloned());
        (self.moved, self.touched) = (now(), false);
    }

    /// Whether something is still to be written.
    pub(super) fn is_unsent(&self) -> bool {
        !self.outgoing.is_empty() || self.unflushed
    }

    /// Gives up what is still to be written.
    pub(super) fn stop_sending(&mut self) {
        self.outgoing = VecDeque::new();
        self.unflushed = false;
    }

    /// Gives back what an idle connection does not need.
    pub(super) fn rest(&mut self) {
        (self.held, self.outgoing, self.wide) = (BytesMut::new(), VecDeque::new(), false);
    }

    /// Writes what is still to be written, as far as the upstream takes it.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            for (slice, piece) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(piece);
            }
            let mut written = match &mut self.stream {
                Stream::Plain(tcp) => ready!(Pin::new(tcp).poll_write_vectored(cx, &slices))?,
                Stream::Tls(tls) => ready!(Pin::new(tls).poll_write_vectored(cx, &slices))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            (self.moved, self.touched, self.unflushed) = (now(), true, true);
            while let Some(piece) = self.outgoing.front_mut()
                && written > 0
            {
                let here = written.min(piece.len());
                piece.advance(here);
                written -= here;
                if piece.is_empty() {
                    self.outgoing.pop_front();
                }
            }
        }
        if self.unflushed {
            if let Stream::Tls(tls) = &mut self.stream {
                ready!(Pin::new(tls).poll_flush(cx))?;
            }
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there into `held`, and says how much it was; 0 at the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let room = if self.wide { WIDE } else { ROOM };
        if self.held.capacity() - self.held.len() < room / 4 {
            self.held.reserve(room);
        }
        let free = self.held.capacity() - self.held.len();
        let read = match &mut self.stream {
            Stream::Plain(tcp) => ready!(poll_read_buf(Pin::new(tcp), cx, &mut self.held))?,
            Stream::Tls(tls) => ready!(poll_read_buf(Pin::new(&mut **tls), cx, &mut self.held))?,
        };
        self.wide = read == free;
        Poll::Ready(Ok(read))
    }
}
