//! Data of jobs outside of memory, as the state service puts it into files.

use std::{
    io,
    sync::{Arc, Mutex},
};

use job::{SpillFile, SpillRef, SpillStore};

/// Puts away more than a few bytes of data, as a state service does where a million jobs wait.
#[derive(Debug, Default)]
pub struct Elsewhere(Arc<Texts>);

#[derive(Debug, Default)]
struct Texts(Mutex<String>);

impl SpillStore for Elsewhere {
    fn put(&self, text: &str) -> Option<SpillRef> {
        let mut texts = self.0.0.lock().unwrap();
        let at = texts.len() as u32;
        texts.push_str(text);
        Some(SpillRef { file: self.0.clone(), at, bytes: text.len() as u32 })
    }
}

impl SpillFile for Texts {
    fn read(&self, at: u32, bytes: u32) -> io::Result<String> {
        let (at, bytes) = (at as usize, bytes as usize);
        Ok(self.0.lock().unwrap()[at..at + bytes].to_owned())
    }
}
