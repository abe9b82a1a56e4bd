//! Transfers files to and from the lab host in pieces.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use lab::protocol::CHUNK_BYTES;

/// Writes one piece. A piece at offset 0 creates or truncates the file.
pub(crate) fn put(path: &str, mode: u32, offset: u64, piece: &[u8]) -> io::Result<()> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is not absolute",
        ));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(offset == 0)
        .open(path)?;
    file.write_all_at(piece, offset)?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// Reads one piece and returns whether it is the last. It also works on sysfs and procfs files, which have no size.
pub(crate) fn get(path: &str, offset: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::new();
    let limit = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut piece)?;
    let end = piece.len() < CHUNK_BYTES;
    Ok((piece, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_into_the_file_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        let path = path.to_str().unwrap();
        let first = vec![7_u8; CHUNK_BYTES];
        put(path, 0o755, 0, &first).unwrap();
        put(path, 0o755, CHUNK_BYTES as u64, b"tail").unwrap();
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(get(path, 0).unwrap(), (first, false));
        assert_eq!(
            get(path, CHUNK_BYTES as u64).unwrap(),
            (b"tail".to_vec(), true)
        );
    }

    #[test]
    fn writing_again_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let path = path.to_str().unwrap();
        put(path, 0o644, 0, b"longer than the next").unwrap();
        put(path, 0o644, 0, b"short").unwrap();
        assert_eq!(get(path, 0).unwrap(), (b"short".to_vec(), true));
    }

    #[test]
    fn a_relative_path_is_refused() {
        let error = put("etc/passwd", 0o644, 0, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
