//! The console: its page and the files that the page loads, as npm built them.
//!
//! Without npm there is a page that says how to get the console; the API does not need it.

/// A file of the console.
#[derive(Debug)]
pub struct File {
    /// The name in its URL: for all but the page it contains a hash of the content.
    pub name: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// The entity tag of its content, with quotation marks.
    pub etag: &'static str,
    /// The content.
    pub content: &'static [u8],
    /// The content compressed with gzip, if that is smaller.
    pub gzip: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// The page.
pub fn page() -> &'static File {
    &PAGE
}

/// A file that the page loads.
pub fn asset(name: &str) -> Option<&'static File> {
    ASSETS.iter().find(|file| file.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts and styles that the first page loads, compressed, in bytes.
    const FIRST_LOAD_MAX: usize = 100_000;

    #[test]
    fn first_load_is_small_and_each_asset_of_the_page_is_there() {
        assert!(!ASSETS.is_empty(), "the console is not built: npm is missing or failed");
        let page = std::str::from_utf8(page().content).expect("the page is text");
        let names = page.split("./assets/").skip(1).filter_map(|rest| rest.split('"').next());
        let sizes = names.map(|name| {
            let file = asset(name).unwrap_or_else(|| panic!("{name} is missing"));
            file.gzip.unwrap_or(file.content).len()
        });
        let bytes: usize = sizes.sum();
        println!("first load: {bytes} bytes");
        assert!(bytes <= FIRST_LOAD_MAX, "{bytes} bytes");
        let all: usize = ASSETS.iter().map(|file| file.gzip.unwrap_or(file.content).len()).sum();
        assert!(all <= FIRST_LOAD_MAX, "all scripts and styles have {all} bytes");
    }
}
