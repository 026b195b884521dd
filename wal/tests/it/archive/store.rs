//! An object store in memory that fails where it is told to.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, memory::InMemory,
    path::Path,
};
use parking_lot::Mutex;

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not done, and fails.
    Fails,
    /// It never answers, and is not done.
    Hangs,
    /// It is done, and never answers.
    DoneAndHangs,
    /// It is done, and fails all the same: trying again does it twice.
    DoneAndFails,
    /// Of what is written, half arrives; it says that all is well.
    Half,
}

pub(crate) const FAULTS: [Fault; 5] =
    [Fault::Fails, Fault::Hangs, Fault::DoneAndHangs, Fault::DoneAndFails, Fault::Half];

/// The store. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct FaultyStore {
    pub(crate) objects: Arc<InMemory>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: AtomicUsize,
    fault: Mutex<Option<(usize, Fault)>>,
    is_down: std::sync::atomic::AtomicBool,
    fired: AtomicUsize,
    hanging: tokio::sync::Notify,
}

impl FaultyStore {
    /// Call number `at` from now on goes wrong.
    pub(crate) fn fail_at(&self, at: usize, fault: Fault) {
        *self.state.fault.lock() = Some((self.state.calls.load(Ordering::SeqCst) + at, fault));
    }

    /// Every call fails, or none does.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// No fault any more. Returns how many have struck.
    pub(crate) fn clear(&self) -> usize {
        *self.state.fault.lock() = None;
        self.fired()
    }

    /// Until a call hangs.
    pub(crate) async fn hangs(&self) {
        self.state.hanging.notified().await;
    }

    /// Faults that have struck.
    pub(crate) fn fired(&self) -> usize {
        self.state.fired.load(Ordering::SeqCst)
    }

    fn strike(&self) -> Option<Fault> {
        let call = self.state.calls.fetch_add(1, Ordering::SeqCst);
        if self.state.is_down.load(Ordering::SeqCst) {
            return Some(Fault::Fails);
        }
        let mut fault = self.state.fault.lock();
        let struck = fault.take_if(|(at, _)| *at == call);
        self.state.fired.fetch_add(usize::from(struck.is_some()), Ordering::SeqCst);
        struck.map(|(_, fault)| fault)
    }

    async fn call<T>(&self, struck: Option<Fault>, work: impl Future<Output = Result<T>>) -> Result<T> {
        match struck {
            None | Some(Fault::Half) => work.await,
            Some(Fault::Fails) => Err(broken()),
            Some(Fault::Hangs) => self.hang().await,
            Some(Fault::DoneAndFails) => {
                let _ = work.await;
                Err(broken())
            }
            Some(Fault::DoneAndHangs) => {
                let _ = work.await;
                self.hang().await
            }
        }
    }

    async fn hang<T>(&self) -> T {
        self.state.hanging.notify_one();
        std::future::pending().await
    }
}

fn broken() -> Error {
    Error::Generic { store: "faulty", source: "injected".into() }
}

fn half(bytes: &Bytes) -> Bytes {
    bytes.slice(..bytes.len() / 2)
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // Stores put an object whole or not at all; half of one comes from uploads in parts.
        self.call(self.strike(), self.objects.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = Upload { store: self.clone(), location: location.clone(), parts: Arc::default(), begun: 0 };
        let upload: Box<dyn MultipartUpload> = Box::new(upload);
        self.call(self.strike(), async { Ok(upload) }).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.call(self.strike(), self.objects.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.strike() {
            Some(Fault::Fails | Fault::DoneAndFails) => Box::pin(futures::stream::once(async { Err(broken()) })),
            Some(Fault::Hangs | Fault::DoneAndHangs) => {
                let store = self.clone();
                Box::pin(futures::stream::once(async move { store.hang().await }))
            }
            _ => self.objects.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct Upload {
    store: FaultyStore,
    location: Path,
    parts: Arc<Mutex<Vec<Bytes>>>,
    begun: usize,
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, parts, number) = (self.store.clone(), self.parts.clone(), self.begun);
        self.begun += 1;
        async move {
            let struck = store.strike();
            let mut bytes = Bytes::from(data);
            if struck == Some(Fault::Half) {
                bytes = half(&bytes);
            }
            let put = async {
                let mut parts = parts.lock();
                if parts.len() <= number {
                    parts.resize(number + 1, Bytes::new());
                }
                parts[number] = bytes;
                Ok(())
            };
            store.call(struck, put).await
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let struck = self.store.strike();
        let mut bytes = Bytes::from(self.parts.lock().concat());
        if struck == Some(Fault::Half) {
            bytes = half(&bytes);
        }
        self.store.call(struck, self.store.objects.put(&self.location, bytes.into())).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.lock().clear();
        Ok(())
    }
}
