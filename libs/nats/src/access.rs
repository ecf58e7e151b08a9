//! The address of NATS, and the login of a client.

use std::{
    fmt,
    io::{self, Read},
    path::PathBuf,
};

use async_nats::{ConnectOptions, ServerAddr};
use url::Url;

/// A text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// What random secrets are made of.
pub(crate) const LETTERS: &[u8; 62] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Secret {
    /// A new secret of random letters and digits, each with 5.95 bits.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn random(chars: usize) -> io::Result<Self> {
        let mut source = std::fs::File::open("/dev/urandom")?;
        let mut text = String::with_capacity(chars);
        let mut bytes = [0; 64];
        while text.len() < chars {
            source.read_exact(&mut bytes)?;
            // Bytes from the highest multiple of 62 on would make some letters more likely.
            let fair = bytes.iter().filter(|byte| **byte < 248);
            text.extend(fair.map(|byte| char::from(LETTERS[usize::from(byte % 62)])));
            text.truncate(chars);
        }
        Ok(Self(text))
    }

    /// The text, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a client proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// Not at all.
    #[default]
    None,
    /// By a user's name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// By a token.
    Token(Secret),
    /// By signing with the seed of an NKEY.
    Nkey(Secret),
    /// By the contents of a credentials file: a JWT and the seed that signs for it.
    Credentials(Secret),
}

/// What the log may show of it.
impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Password { user, .. } => write!(f, "user {user}"),
            Self::Token(_) => f.write_str("token"),
            Self::Nkey(_) => f.write_str("NKEY"),
            Self::Credentials(_) => f.write_str("credentials"),
        }
    }
}

/// Certificates of a TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// A file with the certificates of authorities to trust in addition to the system's, as PEM.
    pub ca: Option<PathBuf>,
    /// Files with the client's own certificate and its key, as PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// The address of NATS, and the login of a client. Neither its `Debug` nor its `Display` shows a
/// secret.
#[derive(Clone, Debug)]
pub struct Access {
    servers: Vec<ServerAddr>,
    login: Login,
    tls: Tls,
    inbox: Option<String>,
}

/// The address or the login cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The address is no URL of a NATS server.
    #[error("the NATS URL number {number} is not usable: {why}")]
    Url {
        /// Which one of the list, from 1.
        number: usize,
        /// What is wrong with it.
        why: String,
    },
    /// There is no address.
    #[error("the list of NATS URLs is empty")]
    NoUrl,
    /// The URLs and the settings, or two URLs, name different logins.
    #[error("the NATS URLs name a user or token, and so does another URL or setting: keep one")]
    TwoLogins,
    /// The seed of the NKEY cannot be parsed.
    #[error("the seed of the NKEY for NATS is not usable: it is a text that begins with SU")]
    Nkey,
    /// The credentials cannot be parsed.
    #[error("the NATS credentials are not usable")]
    Credentials(#[source] io::Error),
}

impl Access {
    /// Reads a list of URLs, separated by commas. A URL may hold `user:password@` or `token@`, which
    /// `login` then must not.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn new(urls: &str, login: Login, tls: Tls) -> Result<Self, AccessError> {
        let mut access = Self { servers: Vec::new(), login, tls, inbox: None };
        let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
        let mut named = None;
        for (index, url) in urls.enumerate() {
            let invalid = |why: String| AccessError::Url { number: index + 1, why };
            // As other clients of NATS, take `host:port` for `nats://host:port`.
            let url = if url.contains("://") { url.to_owned() } else { format!("nats://{url}") };
            let mut url: Url = url.parse().map_err(|error| invalid(format!("{error}")))?;
            if url.host_str().unwrap_or_default().is_empty() {
                return Err(invalid("it names no host".to_owned()));
            }
            if let Some(login) = login_in(&url).map_err(invalid)? {
                if named.as_ref().is_some_and(|named| *named != login) {
                    return Err(AccessError::TwoLogins);
                }
                named = Some(login);
            }
            // A URL with a host can be without a user.
            let _ = url.set_username("").and_then(|()| url.set_password(None));
            let server = ServerAddr::from_url(url).map_err(|error| invalid(error.to_string()))?;
            access.servers.push(server);
        }
        if access.servers.is_empty() {
            return Err(AccessError::NoUrl);
        }
        match (named, &access.login) {
            (None, _) => {}
            (Some(named), Login::None) => access.login = named,
            (Some(_), _) => return Err(AccessError::TwoLogins),
        }
        Ok(access)
    }

    /// The same, with inboxes of this service: subjects that only its login may subscribe to.
    #[must_use]
    pub fn with_inboxes_of(self, service: &str) -> Self {
        Self { inbox: Some(format!("_INBOX.{service}")), ..self }
    }

    /// The login.
    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// The addresses, to be connected to.
    pub(crate) fn servers(&self) -> &[ServerAddr] {
        &self.servers
    }

    /// Adds the login and the certificates to the options of a connection.
    pub(crate) fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, AccessError> {
        let options = match &self.inbox {
            Some(prefix) => options.custom_inbox_prefix(prefix),
            None => options,
        };
        let options = match &self.login {
            Login::None => options,
            Login::Password { user, password } => {
                options.user_and_password(user.clone(), password.0.clone())
            }
            Login::Token(token) => options.token(token.0.clone()),
            Login::Nkey(seed) => {
                let seed = seed.0.trim();
                nkeys::KeyPair::from_seed(seed).map_err(|_| AccessError::Nkey)?;
                options.nkey(seed.to_owned())
            }
            Login::Credentials(text) => {
                options.credentials(&text.0).map_err(AccessError::Credentials)?
            }
        };
        let options = match &self.tls.ca {
            Some(ca) => options.add_root_certificates(ca.clone()),
            None => options,
        };
        Ok(match &self.tls.client {
            Some((certificate, key)) => {
                options.add_client_certificate(certificate.clone(), key.clone())
            }
            None => options,
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.servers.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{}", server.as_url_str())?;
        }
        Ok(())
    }
}

/// The login that a URL holds.
fn login_in(url: &Url) -> Result<Option<Login>, String> {
    let decode = |text: &str| {
        let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| "its user is not UTF-8".to_owned())
    };
    let user = decode(url.username())?;
    let password = url.password().map(decode).transpose()?;
    Ok(match (user, password) {
        (user, None) if user.is_empty() => None,
        (token, None) => Some(Login::Token(token.into())),
        (user, Some(password)) => Some(Login::Password { user, password: password.into() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(urls: &str) -> Result<Access, AccessError> {
        Access::new(urls, Login::None, Tls::default())
    }

    #[test]
    fn a_login_in_the_url_is_used_and_never_shown() -> Result<(), AccessError> {
        let found = access("nats://u%40x:p%3Aw@a:4223, nats://u%40x:p%3Aw@b")?;
        let login = Login::Password { user: "u@x".to_owned(), password: "p:w".into() };
        assert_eq!(found.login, login);
        assert_eq!(found.to_string(), "nats://a:4223,nats://b");
        for shown in [format!("{found:?}"), format!("{login:?}"), found.to_string()] {
            assert!(!shown.contains("p:w") && !shown.contains("p%3Aw"), "{shown}");
        }
        assert_eq!(access("tls://secret@host:4222")?.login, Login::Token("secret".into()));
        assert_eq!(access("localhost:4222")?.to_string(), "nats://localhost:4222");
        Ok(())
    }

    #[test]
    fn what_is_not_usable_is_refused_without_the_secret() {
        for urls in [
            "",
            ",",
            "http://u:secret@host",
            "nats://u:secret@",
            "nats://u:secret@host:99999",
            "nats://u:secret@a,nats://u:other@b",
        ] {
            let error = access(urls).expect_err(urls).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let login = Login::Token("t".into());
        let both = Access::new("nats://u:p@host", login, Tls::default());
        assert!(matches!(both, Err(AccessError::TwoLogins)));
    }
}
