//! Bytes that lie in several places.

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

/// Bytes in pieces, in order: what was read from the log goes out from where it lies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pieces {
    pieces: Vec<Bytes>,
    len: usize,
}

impl Pieces {
    /// Adds a piece.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes of all pieces.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// xxh3 of all bytes, whatever the pieces.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = Xxh3::new();
        self.pieces.iter().for_each(|piece| hash.update(piece));
        hash.digest()
    }

    /// All bytes in one place: copied, unless they are one piece.
    pub(crate) fn joined(&self) -> Bytes {
        if let [only] = &self.pieces[..] {
            return only.clone();
        }
        let mut joined = BytesMut::with_capacity(self.len);
        self.pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        joined.freeze()
    }

    /// The pieces.
    pub(crate) fn into_pieces(self) -> Vec<Bytes> {
        self.pieces
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(bytes);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn pieces_are_their_bytes() {
        let whole: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        for cuts in [&[][..], &[0], &[1, 2, 240, 241, 1_024, 39_999], &[20_000, 20_000]] {
            let mut pieces = Pieces::default();
            let mut from = 0;
            for cut in cuts.iter().copied().chain([whole.len()]) {
                pieces.push(Bytes::copy_from_slice(&whole[from..cut]));
                from = cut;
            }
            assert_eq!((pieces.len(), pieces.hash()), (whole.len(), xxh3_64(&whole)));
            assert_eq!(pieces.joined(), whole);
            assert!(pieces.into_pieces().iter().all(|piece| !piece.is_empty()));
        }
        assert_eq!((Pieces::default().hash(), Pieces::default().joined().len()), (xxh3_64(&[]), 0));
    }
}
