//! Reading a folder that somebody else may have prepared: regular files only, no links, by handle and not by path.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow_buffer::{Buffer, MutableBuffer};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::manifest::hex;

/// Bytes hashed between two looks at the interrupt.
const HASH_BYTES: usize = 1 << 20;

/// An open folder: another one that takes its place meanwhile is not mixed with it.
pub(crate) struct Folder {
    path: PathBuf,
    #[cfg(unix)]
    handle: rustix::fd::OwnedFd,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        let found = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(format!("{}: nothing is saved there", path.display())),
            _ => Error::os("open", path)(error),
        })?;
        if !found.is_dir() {
            return Err(Error::format(path, "is not a folder, and a save of mnemex is one: name the folder"));
        }
        Ok(Folder {
            path: path.to_owned(),
            #[cfg(unix)]
            handle: {
                use rustix::fs::{Mode, OFlags};
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::os("open", path)(error.into()))?
            },
        })
    }

    /// A regular file of the folder.
    pub(crate) fn file(&self, name: &str) -> Result<DataFile> {
        let path = self.path.join(name);
        let file = self.handle_of(name, &path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::format(
                &path,
                "is missing: the folder is not a save of mnemex, or an incomplete copy of one; copy it whole",
            ),
            io::ErrorKind::InvalidInput => Error::format(&path, "is a symbolic link: copy the file itself"),
            _ => Error::os("open", &path)(error),
        })?;
        let found = file.metadata().map_err(Error::os("look at", &path))?;
        if !found.is_file() {
            return Err(Error::format(&path, "is not a regular file"));
        }
        Ok(DataFile { file, path, bytes: found.len() })
    }

    /// Opens a file, and answers a link with `InvalidInput`.
    #[cfg(unix)]
    fn handle_of(&self, name: &str, _: &Path) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        // Not blocking: a pipe of that name must not hang the caller.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::LOOP) => Err(io::ErrorKind::InvalidInput.into()),
            opened => Ok(opened?.into()),
        }
    }

    #[cfg(not(unix))]
    fn handle_of(&self, _: &str, path: &Path) -> io::Result<File> {
        if fs::symlink_metadata(path)?.is_symlink() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        File::open(path)
    }
}

/// One file, its path for messages, and its length when it was opened.
pub(crate) struct DataFile {
    file: File,
    path: PathBuf,
    pub(crate) bytes: u64,
}

impl DataFile {
    /// The error of a file that does not hold what it should.
    pub(crate) fn fail(&self, message: impl Display) -> Error {
        Error::format(&self.path, message)
    }

    fn unreadable(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.fail("became shorter while it was read"),
            _ => Error::os("read", &self.path)(error),
        }
    }

    /// Bytes from `offset`; None where the file has not so many.
    pub(crate) fn read(&mut self, offset: u64, len: u64) -> Result<Option<Buffer>> {
        if offset.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Ok(None);
        }
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        let mut buffer = MutableBuffer::from_len_zeroed(len);
        self.file.seek(SeekFrom::Start(offset)).map_err(|error| self.unreadable(error))?;
        self.file.read_exact(&mut buffer).map_err(|error| self.unreadable(error))?;
        Ok(Some(buffer.into()))
    }

    /// SHA-256 of the whole file.
    pub(crate) fn sha256(&mut self, interrupt: &Interrupt) -> Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; HASH_BYTES];
        self.file.seek(SeekFrom::Start(0)).map_err(|error| self.unreadable(error))?;
        loop {
            interrupt.poll()?;
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(hex(&hash.finalize())),
                Ok(n) => hash.update(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
    }
}
