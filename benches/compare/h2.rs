//! An HTTP/2 connection of a client, as far as the load needs it.
//!
//! Frames are written and read by hand, so that the generator costs little. As with real clients, the first request of
//! a connection teaches the gateway its headers, and later ones point at them. The answers' headers come without a
//! table of that kind: their status is one byte.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::script;
use crate::wire::{Target, Wire, wrong};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in the static table.
const STATUS_200: u8 = 0x88;

/// What came on a stream; its status was 200.
pub enum Part<'a> {
    Data(&'a [u8]),
    End,
}

/// A connection whose requests are all the same.
pub struct H2 {
    wire: Wire,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    body: String,
    /// The header block of the next request.
    block: Vec<u8>,
    next: u32,
    /// How much may be sent.
    window: i64,
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl H2 {
    /// Connects; every request will carry `body`.
    pub async fn connect(target: &Target, body: String) -> io::Result<H2> {
        let wire = target.connect().await?;
        let mut outbox = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        // No table for answers' headers, no pushes, and windows that a whole run does not use up.
        let settings = [(1_u16, 0_u32), (2, 0), (4, i32::MAX as u32)];
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        put(&mut outbox, SETTINGS, 0, 0, &settings);
        put(&mut outbox, WINDOW, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes());
        let block = teaching(body.len());
        Ok(H2 { wire, inbox: Vec::new(), outbox, body, block, next: 1, window: 65_535 })
    }

    /// Begins a request when the gateway has room for its body; its stream.
    pub fn start(&mut self) -> Option<u32> {
        if self.window < self.body.len() as i64 {
            return None;
        }
        self.window -= self.body.len() as i64;
        let stream = self.next;
        put(&mut self.outbox, HEADERS, END_HEADERS, stream, &self.block);
        put(&mut self.outbox, DATA, END_STREAM, stream, self.body.as_bytes());
        if self.next == 1 {
            self.block = pointing();
        }
        self.next += 2;
        Some(stream)
    }

    /// Sends what waits, and hands over what has come.
    pub async fn step(&mut self, told: &mut impl FnMut(u32, Part<'_>) -> io::Result<()>) -> io::Result<()> {
        if !self.outbox.is_empty() {
            self.wire.write_all(&self.outbox).await?;
            self.wire.flush().await?;
            self.outbox.clear();
        }
        self.inbox.reserve(16 << 10);
        if self.wire.read_buf(&mut self.inbox).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        while let Some(frame) = Frame::read(&inbox[at..]) {
            at += 9 + frame.payload.len();
            self.take(&frame, told)?;
        }
        self.inbox = inbox;
        self.inbox.drain(..at);
        Ok(())
    }

    fn take(&mut self, frame: &Frame<'_>, told: &mut impl FnMut(u32, Part<'_>) -> io::Result<()>) -> io::Result<()> {
        match frame.kind {
            HEADERS => {
                let first = frame.payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                if first != Some(&STATUS_200) {
                    return Err(wrong(format!("an answer whose status is not 200: {:02x?}", frame.payload)));
                }
            }
            DATA if !frame.payload.is_empty() => told(frame.stream, Part::Data(frame.payload))?,
            SETTINGS if frame.flags & ACK == 0 => {
                for setting in frame.payload.chunks_exact(6) {
                    let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
                    let small =
                        (setting[1] == 1 && value < 4096) || (setting[1] == 4 && (value as usize) < self.body.len());
                    if small {
                        return Err(wrong(format!("the gateway wants HTTP/2 with setting {} = {value}", setting[1])));
                    }
                }
                put(&mut self.outbox, SETTINGS, ACK, 0, &[]);
            }
            PING if frame.flags & ACK == 0 => put(&mut self.outbox, PING, ACK, 0, frame.payload),
            WINDOW if frame.stream == 0 => {
                let bytes = frame.payload.first_chunk().copied().unwrap_or_default();
                self.window += i64::from(u32::from_be_bytes(bytes));
            }
            RESET => return Err(wrong(format!("stream {} was reset: {:?}", frame.stream, frame.payload))),
            GOAWAY => return Err(wrong(format!("the connection was ended: {:?}", frame.payload))),
            _ => {}
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            told(frame.stream, Part::End)?;
        }
        Ok(())
    }
}

impl Frame<'_> {
    fn read(bytes: &[u8]) -> Option<Frame<'_>> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = bytes.get(9..9 + length)?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), payload })
    }
}

fn put(outbox: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    outbox.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    outbox.extend_from_slice(&[kind, flags]);
    outbox.extend_from_slice(&stream.to_be_bytes());
    outbox.extend_from_slice(payload);
}

/// `:method POST` and `:scheme https` of the static table.
const KNOWN: [u8; 2] = [0x83, 0x87];

/// The header block that puts every header into the gateway's table.
fn teaching(length: usize) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let mut block = KNOWN.to_vec();
    // Static names: `:path` is 4, `:authority` 1.
    block.extend([vec![0x44], text(script::PATH), vec![0x41], text("localhost")].concat());
    let length = length.to_string();
    for (name, value) in script::FIELDS.into_iter().chain([("content-length", length.as_str())]) {
        block.extend([vec![0x40], text(name), text(value)].concat());
    }
    block
}

/// The header block that points at what was taught, in the same order: the newest entry is 62.
fn pointing() -> Vec<u8> {
    let taught = script::FIELDS.len() as u8 + 3;
    KNOWN.into_iter().chain((0..taught).rev().map(|place| 0x80 | (62 + place))).collect()
}
