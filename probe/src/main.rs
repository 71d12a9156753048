//! The `probe` binary. All of its code is in the library, so that the fuzz targets can call it.

fn main() -> std::process::ExitCode {
    probe::main()
}
