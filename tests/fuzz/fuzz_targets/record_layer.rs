#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pg_iam_proxy_fuzz::record_layer(data));
