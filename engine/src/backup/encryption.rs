//! Encrypted files: the age format, so that other tools read them. Who writes needs public keys only.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::Arc,
};

use age::{
    Decryptor, Encryptor, IdentityFile,
    stream::{StreamReader, StreamWriter},
    x25519,
};
use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use crate::{EngineError, Result};

/// Most recipients.
const RECIPIENTS_MAX: usize = 64;
/// Plain bytes that a reader gets at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces on their way to and from a thread that decrypts.
const PIECES: usize = 2;

/// For whom files are encrypted.
#[derive(Clone)]
pub struct Recipients {
    keys: Arc<Vec<x25519::Recipient>>,
    hash: String,
}

impl Recipients {
    /// From the text of a file of recipients: a public key `age1…` in each line; empty lines and `#` are passed over.
    ///
    /// # Errors
    /// Names the line that is no public key, without its text: it may be a secret one.
    pub fn parse(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse::<x25519::Recipient>().map_err(|_| {
                EngineError::Invalid(format!(
                    "line {} of the file of recipients is no public key age1…; `age-keygen -y` prints that of an identity",
                    number + 1
                ))
            })?;
            keys.push(key);
        }
        if keys.is_empty() || keys.len() > RECIPIENTS_MAX {
            return Err(EngineError::Invalid(format!(
                "the file of recipients holds {} public keys; it can hold 1 to {RECIPIENTS_MAX}",
                keys.len()
            )));
        }
        let mut texts: Vec<String> = keys.iter().map(ToString::to_string).collect();
        texts.sort_unstable();
        texts.dedup();
        Ok(Self { keys: Arc::new(keys), hash: format!("{:016x}", xxh3_64(texts.join("\n").as_bytes())) })
    }

    /// Tells sets of recipients apart: files that are encrypted for others are not shared.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Encrypts what is small.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>> {
        let mut encryption = Encryption::new(self)?;
        let mut sealed = encryption.push_here(plain)?;
        sealed.extend(encryption.finish_here()?);
        Ok(sealed)
    }
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipients").field("keys", &self.keys.len()).field("hash", &self.hash).finish()
    }
}

/// Who can read encrypted files.
#[derive(Clone)]
pub struct Identities(Arc<Vec<Box<dyn age::Identity + Send + Sync>>>);

impl Identities {
    /// From the text of an age identity file. It is not kept and never shown.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            EngineError::Invalid("the key file is no age identity file: it holds no line AGE-SECRET-KEY-1…".to_owned())
        };
        let identities = IdentityFile::from_buffer(io::Cursor::new(text)).map_err(|_| wrong())?;
        let identities = identities.into_identities().map_err(|_| wrong())?;
        if identities.is_empty() {
            return Err(wrong());
        }
        Ok(Self(Arc::new(identities)))
    }

    /// The plain bytes of what is read.
    pub(super) fn reader<R: Read>(&self, input: R) -> io::Result<StreamReader<R>> {
        let identities = self.0.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
        Decryptor::new(input).and_then(|decryptor| decryptor.decrypt(identities)).map_err(|error| {
            io::Error::other(match error {
                age::DecryptError::NoMatchingKeys => {
                    "it is encrypted for other keys than the key file holds".to_owned()
                }
                error => error.to_string(),
            })
        })
    }

    /// Decrypts what is small.
    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let mut plain = Vec::new();
        let read = self.reader(sealed).and_then(|mut reader| reader.read_to_end(&mut plain));
        read.map_err(|error| EngineError::Invalid(format!("the backup's descriptions cannot be decrypted: {error}")))?;
        Ok(plain)
    }

    /// Decrypts a stream on a thread of its own. What comes out ends with an error, or where `input` ends.
    pub(super) fn decrypt(&self, input: mpsc::Receiver<Result<Bytes>>) -> mpsc::Receiver<Result<Bytes>> {
        let (sender, plain) = mpsc::channel(PIECES);
        let identities = self.clone();
        tokio::task::spawn_blocking(move || {
            let failed = Arc::new(Mutex::new(None));
            let input = Input { pieces: input, current: Bytes::new(), failed: failed.clone() };
            if let Err(error) = identities.pump(input, &sender) {
                let error = failed.lock().take().unwrap_or_else(|| EngineError::Storage {
                    operation: "decrypt",
                    object: "a file of a backup".to_owned(),
                    reason: error.to_string(),
                });
                let _ = sender.blocking_send(Err(error));
            }
        });
        plain
    }

    fn pump(&self, input: Input, to: &mpsc::Sender<Result<Bytes>>) -> io::Result<()> {
        let mut reader = self.reader(io::BufReader::with_capacity(PIECE_BYTES, input))?;
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            if reader.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece)? == 0 {
                return Ok(());
            }
            if to.blocking_send(Ok(piece.into())).is_err() {
                // Nobody wants more.
                return Ok(());
            }
        }
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("keys", &self.0.len()).finish()
    }
}

/// Encrypted bytes on their way to a thread that decrypts.
struct Input {
    pieces: mpsc::Receiver<Result<Bytes>>,
    current: Bytes,
    /// Why no more comes.
    failed: Arc<Mutex<Option<EngineError>>>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => {
                    *self.failed.lock() = Some(error);
                    return Err(io::Error::other("no more comes"));
                }
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// A file being encrypted.
pub(super) struct Encryption {
    /// `None` while a thread has it, and at the end.
    writer: Option<StreamWriter<Output>>,
    output: Output,
}

/// Encrypted bytes that nobody has taken yet.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Encryption {
    pub(super) fn new(recipients: &Recipients) -> Result<Self> {
        let output = Output::default();
        let keys = recipients.keys.iter().map(|key| key as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(keys)
            .map_err(|error| EngineError::Invalid(format!("these recipients cannot be used together: {error}")))?;
        let writer = encryptor.wrap_output(output.clone()).map_err(failed)?;
        Ok(Self { writer: Some(writer), output })
    }

    /// Takes plain bytes, gives what is encrypted so far. The work is done on a blocking thread.
    pub(super) async fn push(&mut self, plain: Bytes) -> Result<Bytes> {
        let mut writer = self.writer.take().ok_or_else(over)?;
        let written = tokio::task::spawn_blocking(move || writer.write_all(&plain).map(|()| writer)).await;
        self.writer = Some(written.map_err(|error| failed(error.into()))?.map_err(failed)?);
        Ok(std::mem::take(&mut *self.output.0.lock()).into())
    }

    /// The end of the file.
    pub(super) fn finish(mut self) -> Result<Bytes> {
        self.finish_here().map(Bytes::from)
    }

    fn push_here(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        self.writer.as_mut().ok_or_else(over)?.write_all(plain).map_err(failed)?;
        Ok(std::mem::take(&mut *self.output.0.lock()))
    }

    fn finish_here(&mut self) -> Result<Vec<u8>> {
        self.writer.take().ok_or_else(over)?.finish().map_err(failed)?;
        Ok(std::mem::take(&mut *self.output.0.lock()))
    }
}

fn over() -> EngineError {
    EngineError::Invalid("the file is encrypted to its end already".to_owned())
}

fn failed(error: io::Error) -> EngineError {
    EngineError::Storage { operation: "encrypt", object: "a file of a backup".to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    fn keys() -> (Recipients, Identities) {
        let key = x25519::Identity::generate();
        let recipients = Recipients::parse(&format!("# somebody\n\n{}\n", key.to_public())).unwrap();
        let identities = Identities::parse(&format!("# a key\n{}\n", key.to_string().expose_secret())).unwrap();
        (recipients, identities)
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let ((recipients, identities), (_, others)) = (keys(), keys());
        let sealed = recipients.seal(b"least and greatest").unwrap();
        assert_eq!(identities.open(&sealed).unwrap(), b"least and greatest");
        let error = others.open(&sealed).unwrap_err().to_string();
        assert!(error.contains("other keys"), "{error}");
    }

    #[test]
    fn key_files_that_are_none_are_refused_without_their_text() {
        let secret = x25519::Identity::generate().to_string();
        let error = Recipients::parse(secret.expose_secret()).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains(secret.expose_secret()), "{error}");
        Recipients::parse("# nobody\n").unwrap_err();
        Identities::parse("# nobody\n").unwrap_err();
        let (recipients, identities) = keys();
        assert!(!format!("{recipients:?} {identities:?}").contains("AGE"));
    }

    #[tokio::test]
    async fn streams_come_back_and_damage_is_an_error() {
        let (recipients, identities) = keys();
        let plain: Vec<u8> = (0..3_000_000u32).map(|byte| byte as u8).collect();
        let mut encryption = Encryption::new(&recipients).unwrap();
        let mut sealed = Vec::new();
        for piece in plain.chunks(700_000) {
            sealed.extend(encryption.push(Bytes::copy_from_slice(piece)).await.unwrap());
        }
        sealed.extend(encryption.finish().unwrap());
        let through = async |sealed: Vec<u8>| -> Result<Vec<u8>> {
            let (sender, receiver) = mpsc::channel(1);
            let mut out = identities.decrypt(receiver);
            let send = async move {
                for piece in sealed.chunks(1_000_000) {
                    let _ = sender.send(Ok(Bytes::copy_from_slice(piece))).await;
                }
            };
            let receive = async {
                let mut plain = Vec::new();
                while let Some(piece) = out.recv().await {
                    plain.extend(piece?);
                }
                Ok(plain)
            };
            futures::future::join(send, receive).await.1
        };
        assert!(through(sealed.clone()).await.unwrap() == plain);
        let mut flipped = sealed.clone();
        flipped[2_000_000] ^= 1;
        through(flipped).await.unwrap_err();
        sealed.truncate(2_000_000);
        through(sealed).await.unwrap_err();
    }
}
