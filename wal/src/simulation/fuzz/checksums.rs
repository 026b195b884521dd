//! Makes the checksums of hostile bytes right, as far as lengths lead to them.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    frame::{HEADER_LEN, Salt},
    payload::padded,
    segment::SEGMENT_HEADER_LEN,
};

/// Of a segment's footer.
const TRAILER_LEN: usize = 128;

/// Those of a segment file.
pub(super) fn repair_segment(file: &mut [u8]) {
    repair_segment_header(file);
    repair_frames(file);
    repair_footer(file, SEGMENT_HEADER_LEN);
}

fn repair_segment_header(file: &mut [u8]) {
    if let Some(checked) = file.get(..SEGMENT_HEADER_LEN - 8) {
        let checksum = xxh3_64(checked);
        put(file, SEGMENT_HEADER_LEN - 8, checksum);
    }
}

fn repair_frames(file: &mut [u8]) {
    let salt = Salt(u64_at(file, 32).unwrap_or_default());
    let mut at = SEGMENT_HEADER_LEN;
    while let Some(len) = u32_at(file, at + 8) {
        repair_frame(file, at, salt);
        if (len as usize) < HEADER_LEN {
            return;
        }
        at = at.saturating_add(len as usize);
    }
}

/// Makes the hashes of parts, directory and header right, as far as they are where lengths say.
pub(super) fn repair_frame(file: &mut [u8], at: usize, salt: Salt) {
    if file.len() < at + HEADER_LEN {
        return;
    }
    let directory_len = u32_at(file, at + 144).unwrap_or_default() as usize;
    let directory = at + HEADER_LEN;
    let end = directory.saturating_add(directory_len);
    if end <= file.len() {
        repair_parts(file, directory, end);
        let hash = xxh3_64(&file[directory..end]);
        put(file, at + 136, hash);
    }
    let checksum = xxh3_64_with_seed(&file[at + 8..at + HEADER_LEN], salt.0);
    put(file, at, checksum);
}

fn repair_parts(file: &mut [u8], directory: usize, end: usize) {
    let count = u32_at(file, directory + 4).unwrap_or_default();
    let (mut entry, mut part) = (directory + 16, directory.saturating_add(padded(end - directory)));
    for _ in 0..count {
        let (Some(partition), Some(length)) = (u32_at(file, entry + 12), u32_at(file, entry + 28)) else { return };
        let Some(bytes) = file.get(part..part.saturating_add(length as usize)) else { return };
        let hash = xxh3_64(bytes);
        if entry + 40 > end {
            return;
        }
        put(file, entry + 32, hash);
        entry = (entry + 40).saturating_add(partition as usize);
        part = part.saturating_add(padded(length as usize));
    }
}

pub(super) fn repair_footer(file: &mut [u8], least: usize) {
    let Some(trailer) = file.len().checked_sub(TRAILER_LEN).filter(|trailer| *trailer >= least) else { return };
    let salt = u64_at(file, 32).unwrap_or_default();
    let offset = |field| u64_at(file, trailer + field).map(|offset| usize::try_from(offset).unwrap_or(usize::MAX));
    if let (Some(records), Some(summaries)) = (offset(16), offset(24)) {
        let of = |range| file.get(range).map(|bytes: &[u8]| xxh3_64_with_seed(bytes, salt));
        let hashes = (of(records..summaries.max(records)), of(summaries..trailer.max(summaries)));
        if let (Some(records), Some(summaries)) = hashes {
            put(file, trailer + 64, records);
            put(file, trailer + 72, summaries);
        }
    }
    let checksum = xxh3_64_with_seed(&file[trailer..trailer + TRAILER_LEN - 8], salt);
    put(file, trailer + TRAILER_LEN - 8, checksum);
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(field) = bytes.get_mut(at..at + 8) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}
