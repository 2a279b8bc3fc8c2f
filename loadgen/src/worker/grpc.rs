//! Where the messages of a gRPC reply begin and end (gRPC over HTTP/2, Length-Prefixed-Message).

/// Flag and length before each message.
const HEAD_BYTES: usize = 5;

/// Counts messages while their bytes come in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Messages {
    head: [u8; HEAD_BYTES],
    /// Bytes of the next head that are there.
    head_bytes: usize,
    /// Bytes of the present message that are still to come.
    left: usize,
    count: u64,
    is_broken: bool,
}

impl Messages {
    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_broken {
            if self.left > 0 {
                let taken = self.left.min(bytes.len());
                self.left -= taken;
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            let room = self.head.get_mut(self.head_bytes..).unwrap_or_default();
            let taken = room.len().min(bytes.len());
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
            bytes = bytes.get(taken..).unwrap_or_default();
            self.head_bytes += taken;
            if self.head_bytes == HEAD_BYTES {
                let [flag, length @ ..] = self.head;
                self.is_broken = flag > 1;
                self.left = u32::from_be_bytes(length) as usize;
                self.head_bytes = 0;
                self.count += 1;
            }
        }
    }

    /// Messages of a reply that ends here; nothing when it ends within one, or is none of gRPC.
    pub(super) fn whole(&self) -> Option<u64> {
        (!self.is_broken && self.head_bytes == 0 && self.left == 0).then_some(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let three = b"\0\0\0\0\x02ab\0\0\0\0\0\x01\0\0\0\x01c";
        for (bytes, expected) in [
            (&b""[..], Some(0)),
            (three, Some(3)),
            (&three[..7], Some(1)),
            (&three[..6], None),
            (&three[..9], None),
            (b"hello", None),
        ] {
            for size in 1..=bytes.len().max(1) {
                let mut messages = Messages::default();
                bytes.chunks(size).for_each(|piece| messages.take(piece));
                assert_eq!(messages.whole(), expected, "{bytes:?} in pieces of {size}");
            }
        }
    }
}
