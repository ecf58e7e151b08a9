//! libchdb, loaded at run time: the C functions that are used, each wrapped once.
//!
//! The signatures are those of `chdb.h` of chDB 26 (github.com/chdb-io/chdb-core,
//! programs/local/chdb.h).

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    mem::ManuallyDrop,
    path::Path,
    sync::Arc,
};

use libloading::Library;

type Connection = *mut c_void;
type ResultHandle = *mut c_void;
type InsertHandle = *mut c_void;

type ConnectFn = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut Connection;
type CloseFn = unsafe extern "C" fn(*mut Connection);
type SignalsFn = unsafe extern "C" fn(c_int);
type ShutdownFn = unsafe extern "C" fn() -> c_int;
type QueryFn = unsafe extern "C" fn(
    Connection,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> ResultHandle;
type AppendFn = unsafe extern "C" fn(InsertHandle, *const c_void, usize) -> c_int;
type DoneFn = unsafe extern "C" fn(InsertHandle) -> ResultHandle;
type InsertErrorFn = unsafe extern "C" fn(InsertHandle) -> *const c_char;
type FreeFn = unsafe extern "C" fn(*mut c_void);
type BufferFn = unsafe extern "C" fn(ResultHandle) -> *const c_char;
type NumberFn = unsafe extern "C" fn(ResultHandle) -> u64;

/// The loaded library.
pub(crate) struct Chdb {
    connect: ConnectFn,
    close: CloseFn,
    shutdown: ShutdownFn,
    query: QueryFn,
    insert: QueryFn,
    append: AppendFn,
    done: DoneFn,
    insert_error: InsertErrorFn,
    destroy_insert: FreeFn,
    destroy_result: FreeFn,
    buffer: BufferFn,
    length: NumberFn,
    error: BufferFn,
    storage_rows_read: NumberFn,
    rows_written: NumberFn,
    // Never unloaded: threads of its own can still run.
    _library: ManuallyDrop<Library>,
}

/// What a statement returned.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub body: Vec<u8>,
    pub rows_read: u64,
    pub rows_written: u64,
}

impl Chdb {
    /// Loads the library and declines its signal handlers.
    pub fn load(path: &Path) -> Result<Arc<Self>, libloading::Error> {
        // SAFETY: libchdb runs no code of its own at load time but C++ initializers, and the
        // types below are those of its header.
        unsafe {
            let library = Library::new(path)?;
            let signals: SignalsFn = *library.get(b"chdb_set_signal_handlers_enabled")?;
            signals(0);
            Ok(Arc::new(Self {
                connect: *library.get(b"chdb_connect")?,
                close: *library.get(b"chdb_close_conn")?,
                shutdown: *library.get(b"chdb_shutdown")?,
                query: *library.get(b"chdb_query_with_params_n")?,
                insert: *library.get(b"chdb_stream_insert_with_params_n")?,
                append: *library.get(b"chdb_stream_append")?,
                done: *library.get(b"chdb_stream_done")?,
                insert_error: *library.get(b"chdb_stream_insert_error")?,
                destroy_insert: *library.get(b"chdb_destroy_insert_stream")?,
                destroy_result: *library.get(b"chdb_destroy_query_result")?,
                buffer: *library.get(b"chdb_result_buffer")?,
                length: *library.get(b"chdb_result_length")?,
                error: *library.get(b"chdb_result_error")?,
                storage_rows_read: *library.get(b"chdb_result_storage_rows_read")?,
                rows_written: *library.get(b"chdb_result_rows_written")?,
                _library: ManuallyDrop::new(library),
            }))
        }
    }

    /// Opens a connection to the tables in `dir`.
    pub fn connect(self: &Arc<Self>, dir: &Path) -> Option<Open> {
        let path = CString::new(format!("--path={}", dir.display())).ok()?;
        let name = CString::new("clickhouse").ok()?;
        let mut arguments = [name.as_ptr().cast_mut(), path.as_ptr().cast_mut()];
        // SAFETY: the arguments live for the call, which copies them.
        let connection = unsafe { (self.connect)(2, arguments.as_mut_ptr()) };
        if connection.is_null() {
            return None;
        }
        Some(Open { chdb: self.clone(), connection })
    }

    /// Stops the engine's threads. To be called once every connection is closed: a process that
    /// ends with them running ends in a segmentation fault.
    pub fn shutdown(&self) {
        // SAFETY: takes no arguments, and refuses by itself while a connection is open.
        unsafe { (self.shutdown)() };
    }

    /// Takes the content out of a result and frees it.
    fn take(&self, result: ResultHandle) -> Result<Answer, String> {
        if result.is_null() {
            return Err("the engine returned nothing".into());
        }
        // SAFETY: the result is valid until it is destroyed, and its buffer has its length.
        unsafe {
            let error = text((self.error)(result));
            let buffer = (self.buffer)(result);
            let length = usize::try_from((self.length)(result)).unwrap_or(0);
            let body = if buffer.is_null() || length == 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec()
            };
            let rows_read = (self.storage_rows_read)(result);
            let rows_written = (self.rows_written)(result);
            (self.destroy_result)(result);
            match error {
                Some(error) => Err(error),
                None => Ok(Answer { body, rows_read, rows_written }),
            }
        }
    }
}

/// A connection. It stays on the thread that runs its statements.
pub(crate) struct Open {
    chdb: Arc<Chdb>,
    connection: *mut Connection,
}

// SAFETY: a connection may be used from any thread, by one at a time; `Open` is neither shared
// nor cloned.
unsafe impl Send for Open {}

/// Names and values of server-side parameters, as C wants them.
struct Parameters<'a> {
    names: Vec<*const c_char>,
    name_lengths: Vec<usize>,
    values: Vec<*const c_char>,
    value_lengths: Vec<usize>,
    _of: &'a [(String, String)],
}

impl<'a> Parameters<'a> {
    fn new(of: &'a [(String, String)]) -> Self {
        Self {
            names: of.iter().map(|(name, _)| name.as_ptr().cast()).collect(),
            name_lengths: of.iter().map(|(name, _)| name.len()).collect(),
            values: of.iter().map(|(_, value)| value.as_ptr().cast()).collect(),
            value_lengths: of.iter().map(|(_, value)| value.len()).collect(),
            _of: of,
        }
    }
}

impl Open {
    /// Runs one statement; its rows come in `format` unless it names another.
    ///
    /// # Errors
    /// ClickHouse's own text.
    pub fn query(
        &mut self,
        sql: &str,
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<Answer, String> {
        let result = self.call(self.chdb.query, sql, format, parameters);
        self.chdb.take(result)
    }

    /// Runs an INSERT without its data, and hands over the data in `format`.
    ///
    /// # Errors
    /// ClickHouse's own text.
    pub fn insert(
        &mut self,
        sql: &str,
        format: &str,
        parameters: &[(String, String)],
        data: &[u8],
    ) -> Result<Answer, String> {
        let stream = self.call(self.chdb.insert, sql, format, parameters);
        // SAFETY: the stream is valid until it is destroyed; the data is copied by the call.
        unsafe {
            let mut error = text((self.chdb.insert_error)(stream));
            if error.is_none() && !data.is_empty() {
                (self.chdb.append)(stream, data.as_ptr().cast(), data.len());
                error = text((self.chdb.insert_error)(stream));
            }
            let answer = match error {
                Some(error) => Err(error),
                None => self.chdb.take((self.chdb.done)(stream)),
            };
            (self.chdb.destroy_insert)(stream);
            answer
        }
    }

    fn call(
        &mut self,
        function: QueryFn,
        sql: &str,
        format: &str,
        parameters: &[(String, String)],
    ) -> *mut c_void {
        let bound = Parameters::new(parameters);
        // SAFETY: every pointer is valid for the call and comes with its length; the connection
        // is open, and `&mut self` keeps it to one statement at a time.
        unsafe {
            function(
                *self.connection,
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                bound.names.as_ptr(),
                bound.name_lengths.as_ptr(),
                bound.values.as_ptr(),
                bound.value_lengths.as_ptr(),
                parameters.len(),
            )
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: the connection is open and no statement runs on it.
        unsafe { (self.chdb.close)(self.connection) };
    }
}

/// The text behind a C string; `None` if it is null.
///
/// # Safety
/// The pointer is null or ends in a zero byte.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: by the contract of this function.
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned();
    (!text.is_empty()).then_some(text)
}
