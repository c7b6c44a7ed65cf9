//! Bytes that stand in the place of an HTTP response, and the socket that can be told to send them.
//!
//! A well-behaved HTTP library refuses to write what a gateway has to be tested with; so the bytes go below it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bytes that a word of a model's name stands for.
pub(super) fn named(word: &str) -> Option<Bytes> {
    Some(match word {
        "drop" => Bytes::new(),
        "101" => Bytes::from_static(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x02hi",
        ),
        "rubbish" => Bytes::from_static(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\x00\xff\xfe\r\n\r\n"),
        "early-hints" => Bytes::from_static(
            b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n\
              HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
        ),
        "two-lengths" => Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ncontent-length: 4\r\n\r\n{}{}",
        ),
        "length-and-chunks" => Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n\
              2\r\n{}\r\n0\r\n\r\n",
        ),
        "bad-chunk" => Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
              9\r\ndata: {}\n\r\nzz\r\ndata: {}\n\n\r\n",
        ),
        "short-body" => Bytes::from_static(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{\"id\":",
        ),
        "big-head" => Bytes::from(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-padding: {}\r\ncontent-length: 2\r\n\r\n{{}}",
            "a".repeat(2 << 20)
        )),
        _ => return None,
    })
}

/// What will be sent in place of the response, once it is set.
#[derive(Debug, Clone, Default)]
pub(super) struct InPlace(Arc<OnceLock<Bytes>>);

impl InPlace {
    /// From now on the socket sends these bytes, then closes.
    pub(super) fn set(&self, bytes: Bytes) {
        // A second value on one connection cannot come: the first one ends it.
        let _already_set = self.0.set(bytes);
    }
}

/// A socket whose writes can be replaced.
pub(super) struct Line<S> {
    socket: S,
    in_place: InPlace,
    rest: Option<Bytes>,
}

impl<S> Line<S> {
    pub(super) fn new(socket: S, in_place: InPlace) -> Line<S> {
        Line { socket, in_place, rest: None }
    }
}

impl<S: AsyncWrite + Unpin> Line<S> {
    /// Sends what was put in place, closes, and ends the connection with an error; `Ready(Ok)` when nothing is in place.
    fn poll_in_place(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(bytes) = self.in_place.0.get() else { return Poll::Ready(Ok(())) };
        let rest = self.rest.get_or_insert_with(|| bytes.clone());
        while rest.has_remaining() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            rest.advance(written);
        }
        ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_in_place(cx))?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_in_place(cx))?;
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
