//! A `pip` that copies wheels the test built, and writes down what it was asked.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Sandbox;

/// The fake's directories inside a sandbox.
pub(crate) struct FakePip {
    wheels: PathBuf,
    log: PathBuf,
}

impl FakePip {
    /// Puts a `python3` that knows only `-m pip` first on the sandbox's `PATH`.
    pub(crate) fn install(sandbox: &mut Sandbox) -> Self {
        let root = sandbox.dir.path();
        let (bin, wheels, log) = (root.join("bin"), root.join("wheels"), root.join("log"));
        for dir in [&bin, &wheels] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(&log, "").unwrap();
        let script = format!(
            "#!/bin/sh\n\
             [ \"$1 $2\" = '-m pip' ] || exit 9\n\
             [ \"$3\" = --version ] && exit 0\n\
             for a in \"$@\"; do [ \"$previous\" = -d ] && d=$a; previous=$a; done\n\
             echo \"$a TMPDIR=$TMPDIR $*\" >> '{log}'\n\
             if [ -e '{wheels}'/\"$a\".slow ]; then sleep 1; fi\n\
             if [ ! -e '{wheels}'/\"$a\".whl ]; then\n\
               echo 'WARNING: something before' >&2\n\
               echo \"ERROR: No matching distribution found for $a\" >&2; exit 1\n\
             fi\n\
             cp '{wheels}'/\"$a\".whl \"$d\"/\"$a\"-py3-none-any.whl\n",
            log = log.display(),
            wheels = wheels.display(),
        );
        let program = bin.join("python3");
        // Written by a child: were this process to hold it open for writing while another
        // test forks, starting it would fail with "text file busy".
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf '%s' \"$2\" > \"$1\" && chmod 755 \"$1\"", "sh"])
            .args([program.as_os_str(), script.as_ref()])
            .status()
            .unwrap();
        assert!(written.success());
        let mut path = bin.into_os_string();
        path.push(":/usr/bin:/bin");
        sandbox.config.search_path = Some(path);
        Self { wheels, log }
    }

    /// Offers `requirement` as a wheel with these members.
    pub(crate) fn offer(&self, requirement: &str, members: &[(&str, &[u8])]) {
        fs::write(self.wheels.join(format!("{requirement}.whl")), wheel(members)).unwrap();
    }

    /// Makes the download of `requirement` take a second.
    pub(crate) fn slow(&self, requirement: &str) {
        fs::write(self.wheels.join(format!("{requirement}.slow")), "").unwrap();
    }

    /// The requirements asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.calls().iter().map(|l| l.split(' ').next().unwrap().to_owned()).collect()
    }

    /// One line per call: requirement, `TMPDIR=...`, arguments.
    pub(crate) fn calls(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap().lines().map(str::to_owned).collect()
    }
}

/// A wheel: the members, deflated, beside the metadata every wheel has.
pub(crate) fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in [("x.dist-info/METADATA", &b"Name: x"[..])].iter().chain(members) {
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Files below `dir`, for asserting that nothing is left over.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| !n.starts_with(".lock"))
        .collect();
    names.sort();
    names
}
