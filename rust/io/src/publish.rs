//! A folder that appears whole or not at all.
//!
//! It is filled under a temporary name beside its place, on the same file system; each file and the folder are synced;
//! one rename puts it in place, which fails rather than replaces where nothing may be replaced. Only a save of mnemex is
//! ever overwritten, and only files of a save are ever removed.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};

use crate::encode::Hashing;
use crate::error::{Error, Result};
use crate::manifest;

/// Bytes collected before a write.
const BUFFER_BYTES: usize = 1 << 18;

/// File name of the `at`-th bank.
pub(crate) fn bank_name(at: usize) -> String {
    format!("bank-{at}.arrow")
}

/// A folder in the making; gone without a trace if it is dropped before it is published.
pub(crate) struct Draft {
    /// Where it is built.
    path: PathBuf,
    /// Where it shall be.
    place: PathBuf,
    overwrite: bool,
    published: bool,
}

/// Where the bytes of a file go.
pub(crate) type Out = Hashing<BufWriter<File>>;

impl Draft {
    pub(crate) fn start(place: &Path, overwrite: bool) -> Result<Draft> {
        let mut place = place.to_owned();
        if overwrite && let Ok(target) = place.canonicalize() {
            place = target; // what a link stands for is replaced, and the link stays
        }
        if place.file_name().is_none() {
            return Err(Error::argument(format!("path={} does not name a new folder", place.display())));
        }
        if fs::symlink_metadata(&place).is_ok() {
            if !overwrite {
                return Err(exists(&place));
            }
            check_replaceable(&place)?;
        }
        let unique = RandomState::new().build_hasher().finish();
        let path = parent(&place).join(format!(".mnemex-{}-{unique:016x}", std::process::id()));
        fs::create_dir(&path).map_err(Error::os("make a folder for", &place))?;
        Ok(Draft { path, place, overwrite, published: false })
    }

    /// Makes one file and syncs it; what `write` returned, the file's length and its SHA-256.
    pub(crate) fn file<T>(
        &self,
        name: &str,
        write: impl FnOnce(&mut Out, &dyn Fn(io::Error) -> Error) -> Result<T>,
    ) -> Result<(T, u64, String)> {
        let failed = |error| Error::os("write", &self.place.join(name))(error);
        let file = OpenOptions::new().write(true).create_new(true).open(self.path.join(name)).map_err(failed)?;
        let mut out = Hashing::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        let made = write(&mut out, &failed)?;
        let (out, bytes, sha256) = out.finish();
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        Ok((made, bytes, sha256))
    }

    /// Puts the folder in its place.
    pub(crate) fn publish(mut self) -> Result<()> {
        sync_folder(&self.path).map_err(Error::os("sync", &self.place))?;
        let old = self.rename().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => exists(&self.place),
            _ => Error::os("move a folder to", &self.place)(error),
        })?;
        self.published = true;
        sync_folder(parent(&self.place)).map_err(Error::os("sync the folder of", &self.place))?;
        match old {
            Some(old) => remove_save(&old).map_err(Error::os("remove what was overwritten, which is now at", &old)),
            None => Ok(()),
        }
    }

    /// One step where the system has it; where what was replaced is, if anything was.
    #[cfg(target_os = "linux")]
    fn rename(&self) -> io::Result<Option<PathBuf>> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        let rename = |flags| renameat_with(CWD, &self.path, CWD, &self.place, flags);
        let done = match if self.overwrite { rename(RenameFlags::EXCHANGE) } else { Err(Errno::NOENT) } {
            Ok(()) => Ok(Some(self.path.clone())),
            Err(Errno::NOENT) => rename(RenameFlags::NOREPLACE).map(|()| None),
            Err(error) => Err(error),
        };
        match done {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.rename_in_steps(),
            done => Ok(done?),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn rename(&self) -> io::Result<Option<PathBuf>> {
        self.rename_in_steps()
    }

    /// Where renames cannot exchange: what is replaced steps aside first, and comes back if the second step fails.
    fn rename_in_steps(&self) -> io::Result<Option<PathBuf>> {
        if fs::symlink_metadata(&self.place).is_err() {
            return fs::rename(&self.path, &self.place).map(|()| None);
        }
        if !self.overwrite {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut aside = self.path.clone().into_os_string();
        aside.push("-old");
        let aside = PathBuf::from(aside);
        fs::rename(&self.place, &aside)?;
        match fs::rename(&self.path, &self.place) {
            Ok(()) => Ok(Some(aside)),
            Err(error) => fs::rename(&aside, &self.place).and(Err(error)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // The error that ended the draft is the one to report.
            let _ = remove_save(&self.path);
        }
    }
}

fn exists(place: &Path) -> Error {
    Error::Exists(format!("{} exists: save elsewhere, or pass overwrite=True to replace it", place.display()))
}

fn parent(place: &Path) -> &Path {
    place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_part(name: &OsStr) -> bool {
    let digits = |name: &str| {
        let number = name.strip_prefix("bank-")?.strip_suffix(".arrow")?;
        Some(!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name == manifest::NAME || name.to_str().and_then(digits).unwrap_or(false)
}

/// Refuses to replace anything but a save with nothing else in it, or an empty folder.
fn check_replaceable(place: &Path) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::Exists(format!("{} {why}, and overwrite=True only replaces saves of mnemex", place.display())))
    };
    if !fs::metadata(place).map_err(Error::os("look at", place))?.is_dir() {
        return refuse("is not a folder");
    }
    let mut empty = true;
    for entry in fs::read_dir(place).map_err(Error::os("look into", place))? {
        let entry = entry.map_err(Error::os("look into", place))?;
        empty = false;
        if !is_part(&entry.file_name()) {
            return refuse(&format!("holds {}", entry.file_name().display()));
        }
    }
    let mut head = Vec::new();
    let manifest = File::open(place.join(manifest::NAME));
    let read = manifest.and_then(|file| file.take(manifest::HEAD.len() as u64).read_to_end(&mut head));
    if empty || read.is_ok() && head == manifest::HEAD { Ok(()) } else { refuse("holds no manifest of mnemex") }
}

/// Removes the files of a save, and the folder once it is empty.
fn remove_save(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if is_part(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // Some file systems have nothing to sync for a folder, and say so.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
