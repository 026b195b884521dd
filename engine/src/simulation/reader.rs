//! Reads of datafiles on a disk that only the seam can open.

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    Attributes, Error, GetOptions, GetResult, GetResultPayload, ObjectMeta, Result, path::Path as ObjectPath,
};
use tailrace_wal::{Disk, DiskFile};

/// The store's files through the disk seam. A simulated disk does not block.
#[derive(Debug, Clone)]
pub(crate) struct DiskReader {
    root: PathBuf,
    disk: Arc<dyn Disk>,
}

impl DiskReader {
    pub(crate) fn new(root: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { root: root.to_owned(), disk }
    }

    pub(crate) fn path(&self, location: &ObjectPath) -> PathBuf {
        self.root.join(location.as_ref())
    }

    pub(crate) fn get(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let (file, meta) = self.open(location)?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(range) => range.as_range(meta.size).map_err(|error| failed("read", location, &error))?,
        };
        let bytes = if options.head { Bytes::new() } else { read_exactly(&*file, location, range.clone())? };
        let payload = GetResultPayload::Stream(stream::iter([Ok(bytes)]).boxed());
        Ok(GetResult { payload, meta, range, attributes: Attributes::default() })
    }

    pub(crate) fn read(&self, location: &ObjectPath, range: Range<u64>) -> Result<Bytes> {
        let (file, _) = self.open(location)?;
        read_exactly(&*file, location, range)
    }

    pub(crate) fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let start = prefix.map_or_else(|| self.root.clone(), |prefix| self.path(prefix));
        let mut found = Vec::new();
        if let Err(error) = self.walk(&start, &mut found) {
            found.push(Err(error));
        }
        stream::iter(found).boxed()
    }

    fn walk(&self, folder: &Path, found: &mut Vec<Result<ObjectMeta>>) -> Result<()> {
        let failed = |error: io::Error| failed("list", &ObjectPath::from(folder.to_string_lossy().as_ref()), &error);
        let mut entries = self.disk.list(folder).map_err(failed)?;
        entries.sort();
        for entry in entries {
            match self.disk.list(&entry) {
                Ok(_) => self.walk(&entry, found)?,
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                    let relative = entry.strip_prefix(&self.root).unwrap_or(&entry).to_string_lossy();
                    let location = ObjectPath::parse(relative)?;
                    found.push(self.open(&location).map(|(_, meta)| meta));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn open(&self, location: &ObjectPath) -> Result<(Arc<dyn DiskFile>, ObjectMeta)> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path: location.to_string(), source: error.into() },
            _ => failed("open", location, &error),
        };
        let file = self.disk.open(&self.path(location), false).map_err(failed)?;
        let size = file.len().map_err(failed)?;
        let location = location.clone();
        let last_modified = chrono::DateTime::UNIX_EPOCH;
        Ok((file, ObjectMeta { location, last_modified, size, e_tag: None, version: None }))
    }
}

impl fmt::Display for DiskReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "files in {}", self.root.display())
    }
}

fn read_exactly(file: &dyn DiskFile, location: &ObjectPath, range: Range<u64>) -> Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], range.start + done as u64) {
            Ok(0) => return Err(failed("read", location, &io::Error::from(io::ErrorKind::UnexpectedEof))),
            Ok(count) => done += count,
            Err(error) => return Err(failed("read", location, &error)),
        }
    }
    Ok(bytes.into())
}

fn failed(operation: &str, location: &ObjectPath, error: &dyn fmt::Display) -> Error {
    Error::Generic { store: "simulated", source: format!("{operation} {location}: {error}").into() }
}
