//! Messages put together by hand, for peers that do what our own client never would.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// `GO` for the default export.
pub const GO_SIMPLE: &[u8] = b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// The same behind `STRUCTURED_REPLY`.
pub const GO_STRUCTURED: &[u8] = b"IHAVEOPT\0\0\0\x08\0\0\0\0IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// `EXTENDED_HEADERS`, `SET_META_CONTEXT` of `base:allocation`, `GO`.
pub const SET_EXTENDED: [&[u8]; 3] = [
    b"IHAVEOPT\0\0\0\x0b\0\0\0\0",
    b"IHAVEOPT\0\0\0\x0a\0\0\0\x1b\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation",
    GO_SIMPLE,
];

/// A compact request.
pub fn compact(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

/// An extended request.
pub fn extended(kind: u16, flags: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut message = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

/// An extended reply chunk.
pub fn chunk(kind: u16, done: bool, cookie: u64, body: &[u8]) -> Vec<u8> {
    let mut message = 0x6e8a_278c_u32.to_be_bytes().to_vec();
    message.extend(u16::from(done).to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(0_u64.to_be_bytes());
    message.extend((body.len() as u64).to_be_bytes());
    message.extend(body);
    message
}

/// Negotiates as a server that grants our client all it asks for, with an export of `size` bytes.
pub async fn extended_server(stream: &mut DuplexStream, size: u64) {
    let reply = |option: u32, kind: u32, data: &[u8]| {
        let mut message = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
        message
    };
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    loop {
        let mut head = [0; 16];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let mut data = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
        stream.read_exact(&mut data).await.unwrap();
        match option {
            10 => stream.write_all(&reply(option, 4, b"\0\0\0\0base:allocation")).await.unwrap(),
            7 => {
                let export = [&[0, 0][..], &size.to_be_bytes(), &[0x05, 0xed]].concat();
                stream.write_all(&reply(option, 3, &export)).await.unwrap();
            }
            _ => {}
        }
        // The client may have had enough.
        let _ = stream.write_all(&reply(option, 1, &[])).await;
        if option == 7 {
            return;
        }
    }
}
