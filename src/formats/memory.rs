//! How much memory of the machine is free.

use super::atomic;

/// Bytes that processes can have without swapping, as Linux estimates it (`MemAvailable` of /proc/meminfo, `proc(5)`); none where the
/// system does not say.
pub fn available_memory() -> Option<usize> {
    let text = atomic::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn some_memory_is_available() {
        let available = available_memory().expect("Linux says it");
        assert!((1 << 20..1 << 50).contains(&available), "{available}");
    }
}
