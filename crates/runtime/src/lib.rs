//! The library's front door: joins models, methods and loops into sessions.
