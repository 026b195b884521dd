//! A file on its way into the store.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::FutureExt;
use object_store::{Error, MultipartUpload, PutPayload, PutResult, UploadPart};
use parking_lot::Mutex;
use tailrace_wal::DiskFile;

use super::{
    blocking,
    folders::{Folders, failed},
};

/// A staging file; removed when it is dropped without having been published.
#[derive(Debug)]
pub(super) struct Staged {
    staging: PathBuf,
    destination: PathBuf,
    folders: Arc<Folders>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// The file is created by the first write, on a thread that may block.
    New,
    Open(Arc<dyn DiskFile>),
    /// A write failed: what is in the file is not what was sent.
    Failed,
    Gone,
}

impl Staged {
    pub(super) fn new(folder: &Path, destination: PathBuf, folders: Arc<Folders>) -> Self {
        let name = folders.staging_name();
        Self { staging: folder.join(name), destination, folders, state: Mutex::new(State::New) }
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> object_store::Result<()> {
        let file = self.file()?;
        file.write_all_vectored_at(&mut [IoSlice::new(bytes)], offset).map_err(|error| {
            self.fail();
            self.failed("write", error)
        })
    }

    /// Makes the file durable under its name.
    pub(super) fn publish(&self) -> object_store::Result<PutResult> {
        let file = self.file()?;
        file.sync_all().map_err(|error| {
            self.fail();
            self.failed("sync", error)
        })?;
        let linked = self.folders.link(&self.staging, &self.destination);
        self.remove();
        linked?;
        Ok(PutResult { e_tag: None, version: None })
    }

    /// Removes the staging file. What remains after a failure is removed at the next start.
    pub(super) fn remove(&self) {
        if let State::Open(_) | State::Failed = std::mem::replace(&mut *self.state.lock(), State::Gone) {
            let _ = self.folders.disk.remove(&self.staging);
        }
    }

    fn file(&self) -> object_store::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        match &*state {
            State::Open(file) => Ok(Arc::clone(file)),
            State::New => {
                let file = self.folders.disk.create(&self.staging);
                let file = file.map_err(|error| self.failed("create", error))?;
                *state = State::Open(Arc::clone(&file));
                Ok(file)
            }
            State::Failed => Err(self.failed("write", io::Error::other("an earlier part of this file failed"))),
            State::Gone => Err(self.failed("write", io::Error::other("the upload has ended"))),
        }
    }

    fn fail(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Open(_)) {
            *state = State::Failed;
        }
    }

    fn failed(&self, operation: &str, source: io::Error) -> Error {
        failed(operation, &self.destination, source)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A multipart upload: parts are written at their offsets, in any order.
#[derive(Debug)]
pub(super) struct Upload {
    staged: Arc<Staged>,
    offset: u64,
}

impl Upload {
    pub(super) fn new(staged: Staged) -> Self {
        Self { staged: Arc::new(staged), offset: 0 }
    }
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let mut offset = self.offset;
        self.offset += data.content_length() as u64;
        let staged = Arc::clone(&self.staged);
        let write = move || {
            for slice in data.iter() {
                staged.write_at(slice, offset)?;
                offset += slice.len() as u64;
            }
            Ok(())
        };
        blocking(write).boxed()
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        let staged = Arc::clone(&self.staged);
        blocking(move || staged.publish()).await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        let staged = Arc::clone(&self.staged);
        blocking(move || {
            staged.remove();
            Ok(())
        })
        .await
    }
}
