//! Bytes of a directory, as drawn in `FORMAT.md`.

use bytes::Bytes;

use crate::{
    Directory, LogError, PartEntry, PartHash, PayloadHash,
    codec::{Decoder, Encoder},
    payload::{FRAME_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PARTITION_BYTES_MAX},
};

const VERSION: u8 = 1;
const FIXED_LEN: usize = 16;
const ENTRY_LEN: usize = 40;
const FRAGMENT_LEN: usize = 8;
const FLAG_KEY: u8 = 1;

impl Directory {
    /// Encodes, or says which limit is passed.
    pub(crate) fn encode(&self) -> Result<Bytes, LogError> {
        let wrong = |reason: String| Err(LogError::Invalid { reason });
        let length = self.encoded_len();
        if length > FRAME_BYTES_MAX {
            return wrong(format!("a directory of {length} bytes does not fit a frame of {FRAME_BYTES_MAX}"));
        }
        if let Some(entry) = self.parts.iter().find(|entry| entry.partition.len() > PARTITION_BYTES_MAX) {
            return wrong(format!("a partition key of {} bytes is too long", entry.partition.len()));
        }
        if let Some(key) = self.idempotency_key.as_ref().filter(|key| key.len() > IDEMPOTENCY_KEY_BYTES_MAX) {
            return wrong(format!(
                "an idempotency key of {} bytes, at most {IDEMPOTENCY_KEY_BYTES_MAX} are allowed",
                key.len()
            ));
        }
        Ok(self.encode_within_limits())
    }

    /// Encodes a directory whose lengths are known to be within the limits.
    pub(crate) fn encode_within_limits(&self) -> Bytes {
        let key = self.idempotency_key.as_deref().unwrap_or_default();
        let mut out = Encoder::with_capacity(self.encoded_len());
        out.u8(VERSION);
        out.u8(if self.idempotency_key.is_some() { FLAG_KEY } else { 0 });
        out.u16(key.len() as u16);
        out.u32(self.parts.len() as u32);
        out.u32(self.fragments.len() as u32);
        out.zeros(4);
        for entry in &self.parts {
            out.u32(entry.table);
            out.u32(entry.schema_version);
            out.u16(entry.operation);
            out.zeros(2);
            out.u32(entry.partition.len() as u32);
            out.u64(entry.first_ordinal);
            out.u32(entry.rows);
            out.u32(entry.length);
            out.u64(entry.hash.0);
            out.bytes(&entry.partition);
        }
        self.fragments.iter().for_each(|hash| out.u64(hash.0));
        out.bytes(key);
        out.finish().into()
    }

    /// Decodes; the bytes are not trusted.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, LogError> {
        let wrong = |reason: String| Err(LogError::Invalid { reason });
        let mut from = Decoder::new(bytes, "directory");
        let version = from.u8()?;
        if version != VERSION {
            return wrong(match version {
                0 => "directory version 0 is a pre-release format, which is not read any more".to_owned(),
                _ => format!(
                    "directory version {version} is not known, this version reads up to {VERSION}; upgrade this node first"
                ),
            });
        }
        let flags = from.u8()?;
        if flags & !FLAG_KEY != 0 {
            return wrong(format!("directory flags {flags:#x} are not known to this version"));
        }
        let key_len = usize::from(from.u16()?);
        let (parts_count, fragments_count) = (from.u32()? as usize, from.u32()? as usize);
        from.reserved(4)?;
        if key_len > IDEMPOTENCY_KEY_BYTES_MAX || (flags & FLAG_KEY == 0 && key_len != 0) {
            return wrong(format!("an idempotency key of {key_len} bytes"));
        }
        if parts_count > from.remaining() / ENTRY_LEN || fragments_count > from.remaining() / FRAGMENT_LEN {
            return wrong(format!(
                "a directory of {} bytes cannot list {parts_count} parts and {fragments_count} fragments",
                bytes.len()
            ));
        }
        let mut parts = Vec::with_capacity(parts_count);
        for _ in 0..parts_count {
            let (table, schema_version, operation) = (from.u32()?, from.u32()?, from.u16()?);
            from.reserved(2)?;
            let partition_len = from.u32()? as usize;
            if partition_len > PARTITION_BYTES_MAX {
                return wrong(format!("a partition key of {partition_len} bytes is too long"));
            }
            let (first_ordinal, rows, length, hash) = (from.u64()?, from.u32()?, from.u32()?, PartHash(from.u64()?));
            let start = from.taken();
            from.bytes(partition_len)?;
            let partition = bytes.slice(start..start + partition_len);
            parts.push(PartEntry { table, schema_version, operation, first_ordinal, rows, length, hash, partition });
        }
        let fragments = (0..fragments_count).map(|_| from.u64().map(PayloadHash)).collect::<Result<_, _>>()?;
        let start = from.taken();
        from.bytes(key_len)?;
        let idempotency_key = (flags & FLAG_KEY != 0).then(|| bytes.slice(start..start + key_len));
        if from.remaining() != 0 {
            return wrong(format!("{} bytes follow the directory", from.remaining()));
        }
        Ok(Self { parts, fragments, idempotency_key })
    }

    fn encoded_len(&self) -> usize {
        FIXED_LEN
            + self.parts.iter().map(|entry| ENTRY_LEN + entry.partition.len()).sum::<usize>()
            + self.fragments.len() * FRAGMENT_LEN
            + self.idempotency_key.as_ref().map_or(0, Bytes::len)
    }
}
