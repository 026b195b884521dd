//! `tailrace init`: a node's folder.
//!
//! ```text
//! DIR/tailrace.toml    settings, every one of them with its default and a comment
//! DIR/tls/ca.crt       the authority that all clusters which replicate with each other share
//! DIR/tls/ca.key       its key, when it was made here: `--ca DIR/tls` signs further nodes with it
//! DIR/tls/node.crt     this node's certificate, with `tailrace://replica/<name>`
//! DIR/tls/node.key     its key
//! DIR/data/            made by the first `serve`
//! ```

mod certificates;
mod files;
mod template;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use tailrace_wal::Clock;

use crate::{
    Error, Result,
    config::{is_name, name_message},
};

/// What to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// The folder; empty or not there yet.
    pub dir: PathBuf,
    /// The node's name; `None`: the folder's.
    pub name: Option<String>,
    /// Folder with `ca.crt` and `ca.key`; `None`: a fresh authority.
    pub ca: Option<PathBuf>,
    /// Further host names and IP addresses of this node, for its certificate.
    pub hosts: Vec<String>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The node's name.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// The settings file in it.
    pub config: PathBuf,
    /// Whether the authority is a new one.
    pub new_ca: bool,
}

/// Makes a node's folder; all of it is durable on return. The settings file is written last: a folder without one was
/// not finished.
///
/// # Errors
/// [`Error::Configuration`] when the folder is not empty, or the name or authority is not usable; nothing was written.
pub fn init(request: &Request, clock: &dyn Clock) -> Result<Initialised> {
    let dir = &request.dir;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => folder_name(dir)?,
    };
    if !is_name(&name) {
        let how = if request.name.is_some() {
            "--name"
        } else {
            "the folder's name, used as the node's (--name sets another),"
        };
        return Err(Error::Configuration(format!("{how} {}", name_message(&name))));
    }
    refuse_used(dir)?;
    let authority = match &request.ca {
        Some(ca) => certificates::Authority::load(ca)?,
        None => certificates::Authority::generate(&name, clock)?,
    };
    let node = authority.issue(&name, &request.hosts, clock)?;

    let tls = dir.join("tls");
    files::create_dir_all(&tls)?;
    files::write(&tls.join("ca.crt"), &authority.certificate, files::Access::Everyone)?;
    if let (None, Some(key)) = (&request.ca, &authority.key_pem) {
        files::write(&tls.join("ca.key"), key, files::Access::Owner)?;
    }
    files::write(&tls.join("node.crt"), &node.certificate, files::Access::Everyone)?;
    files::write(&tls.join("node.key"), &node.key, files::Access::Owner)?;
    files::sync_dir(&tls)?;
    let config = dir.join("tailrace.toml");
    files::write(&config, &template::settings(&name), files::Access::Everyone)?;
    files::sync_dir(dir)?;
    Ok(Initialised { name, dir: dir.clone(), config, new_ca: request.ca.is_none() })
}

impl fmt::Display for Initialised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node {:?} in {}", self.name, self.dir.display())?;
        if self.new_ca {
            let tls = self.dir.join("tls");
            writeln!(f, "  a development CA of its own; further nodes: tailrace init DIR --ca {}", tls.display())?;
        }
        write!(f, "  run it: tailrace serve --config {}", self.config.display())
    }
}

fn folder_name(dir: &Path) -> Result<String> {
    let full = std::path::absolute(dir).map_err(Error::io("resolve", dir))?;
    match full.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::Configuration(format!("{} has no name that a node could take; give --name", dir.display()))),
    }
}

fn refuse_used(dir: &Path) -> Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    if dir.join("tailrace.toml").exists() {
        return Err(Error::Configuration(format!(
            "{} is initialised already; nothing was changed; run it with `tailrace serve --config {}`",
            dir.display(),
            dir.join("tailrace.toml").display()
        )));
    }
    if entries.next().is_some() {
        return Err(Error::Configuration(format!(
            "{} is not empty; nothing was changed; name an empty or a new folder",
            dir.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tailrace_wal::SystemClock;

    use super::*;

    fn request(dir: PathBuf) -> Request {
        Request { dir, name: None, ca: None, hosts: Vec::new() }
    }

    #[test]
    fn a_folder_is_made_whose_settings_load() {
        let root = tempfile::tempdir().unwrap();
        let made = init(&request(root.path().join("a/siteA")), &*SystemClock::shared()).unwrap();
        assert_eq!(made.name, "siteA");
        let settings = crate::config::load(&made.config, &[]).unwrap();
        assert_eq!(settings.node.name, "siteA");
        let tls = settings.tls.unwrap();
        for (path, mode) in [(&tls.ca, 0o644), (&tls.certificate, 0o644), (&tls.key, 0o600)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
        }
    }

    #[test]
    fn a_used_folder_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let made = init(&request(root.path().join("siteA")), &*SystemClock::shared()).unwrap();
        let before = std::fs::read(&made.config).unwrap();
        let again = init(&request(root.path().join("siteA")), &*SystemClock::shared()).unwrap_err();
        assert!(again.to_string().contains("initialised already"), "{again}");
        assert_eq!(std::fs::read(&made.config).unwrap(), before);

        let other = init(&request(root.path().to_owned()), &*SystemClock::shared()).unwrap_err();
        assert_eq!(other.exit_code(), 2);
    }

    #[test]
    fn a_second_node_is_signed_by_the_firsts_authority_and_does_not_get_its_key() {
        let root = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        init(&request(root.path().join("siteA")), &*clock).unwrap();
        let second = Request {
            ca: Some(root.path().join("siteA/tls")),
            hosts: vec!["b.example.org".to_owned(), "10.0.0.2".to_owned()],
            ..request(root.path().join("siteB"))
        };
        init(&second, &*clock).unwrap();
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("siteA/tls/ca.crt"), read("siteB/tls/ca.crt"));
        assert!(!root.path().join("siteB/tls/ca.key").exists());
    }

    #[test]
    fn an_authority_whose_key_is_missing_or_wrong_is_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        init(&request(root.path().join("siteA")), &*clock).unwrap();
        init(&request(root.path().join("siteC")), &*clock).unwrap();
        let ca = root.path().join("ca");
        std::fs::create_dir(&ca).unwrap();
        std::fs::copy(root.path().join("siteA/tls/ca.crt"), ca.join("ca.crt")).unwrap();
        let second = Request { ca: Some(ca.clone()), ..request(root.path().join("siteB")) };
        let error = init(&second, &*clock).unwrap_err();
        assert!(error.to_string().contains("ca.key"), "{error}");

        std::fs::copy(root.path().join("siteC/tls/ca.key"), ca.join("ca.key")).unwrap();
        let error = init(&second, &*clock).unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error}");
        assert!(!root.path().join("siteB").exists());
    }
}
