//! A node's disk: a small ext4 file system on a loop device that can be filled, turned read-only and robbed of all that
//! was not synced. Where mounting is not permitted it is a plain folder, and those faults are left out.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// Size of a file system. Sparse: takes what is written to it.
const MEBIBYTES: u64 = 512;

/// ext4's own "go down" call, without writing its journal: what was not synced is lost, as when the power fails.
const GO_DOWN: &str = r#"my $flags = pack("L", 2); open(my $dir, "<", $ARGV[0]) or die "open: $!"; ioctl($dir, 0x8004587d, $flags) or die "ioctl: $!""#;

/// A folder with a disk of its own, if this machine permits that.
#[derive(Debug)]
pub(crate) struct Volume {
    image: PathBuf,
    mount: PathBuf,
    pub(crate) is_mounted: bool,
}

impl Volume {
    /// Makes and mounts `<folder>/<name>`.
    pub(crate) fn make(folder: &Path, name: &str) -> Self {
        let mut volume =
            Self { image: folder.join(format!("{name}.ext4")), mount: folder.join(name), is_mounted: false };
        fs::create_dir(&volume.mount).unwrap();
        let made = (|| {
            fs::File::create(&volume.image)
                .and_then(|file| file.set_len(MEBIBYTES << 20))
                .map_err(|e| e.to_string())?;
            // No blocks kept for root: full is full for everyone.
            run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", text(&volume.image)])?;
            volume.mount()
        })();
        volume.is_mounted = made.is_ok();
        if let Err(reason) = made {
            println!("{name}: no disk of its own, so no full disk, no read-only disk, no power loss: {reason}");
            let _ = fs::remove_file(&volume.image);
        }
        volume
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Takes all space but `spare` bytes.
    pub(crate) fn fill(&self, spare: u64) -> Result<(), String> {
        let available = run("df", &["--output=avail", "-B1", text(&self.mount)])?;
        let available: u64 = available.lines().nth(1).and_then(|line| line.trim().parse().ok()).ok_or("df")?;
        let ballast = self.mount.join("ballast");
        let bytes = available.saturating_sub(spare);
        // Others write meanwhile: what cannot be had at once is not.
        let _ = run("fallocate", &["-l", &bytes.max(1).to_string(), text(&ballast)]);
        if spare == 0 {
            let mut rest = fs::File::create(self.mount.join("ballast-rest")).map_err(|error| error.to_string())?;
            while rest.write_all(&[0xba; 1024]).is_ok() {}
        }
        Ok(())
    }

    pub(crate) fn unfill(&self) {
        let _ = fs::remove_file(self.mount.join("ballast-rest"));
        let _ = fs::remove_file(self.mount.join("ballast"));
    }

    /// From now on every write fails with EROFS.
    pub(crate) fn turn_read_only(&self) -> Result<(), String> {
        let device = run("findmnt", &["-n", "-o", "SOURCE", text(&self.mount)])?;
        let name = device.trim().rsplit('/').next().unwrap_or_default();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").map_err(|error| error.to_string())
    }

    /// From now on every write fails with EIO, and what was not synced never reaches the disk.
    pub(crate) fn lose_power(&self) -> Result<(), String> {
        run("perl", &["-e", GO_DOWN, text(&self.mount)]).map(drop)
    }

    /// Repairs and mounts anew. No process may have a file open in it.
    pub(crate) fn remount(&mut self) -> Result<(), String> {
        self.is_mounted = false;
        run("umount", &[text(&self.mount)])?;
        // 1: errors were corrected.
        let status = Command::new("e2fsck").args(["-p", text(&self.image)]).output().map_err(|e| e.to_string())?;
        if status.status.code().is_none_or(|code| code > 1) {
            return Err(format!("e2fsck: {}", String::from_utf8_lossy(&status.stdout)));
        }
        self.mount()?;
        self.is_mounted = true;
        Ok(())
    }

    fn mount(&self) -> Result<(), String> {
        let options = "loop,noatime,errors=remount-ro";
        run("mount", &["-o", options, text(&self.image), text(&self.mount)]).map(drop)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily: a node that still runs is killed soon, and the image must not stay mounted.
            let _ = run("umount", &["-l", text(&self.mount)]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
