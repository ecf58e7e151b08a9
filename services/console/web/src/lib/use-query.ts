// Data of a view: loaded when its key changes, and again when any job has changed.

import { useEffect, useRef, useState } from "preact/hooks";
import type { ApiError } from "./api";
import { version } from "./live";

export interface Query<T> {
  data: T | null;
  error: ApiError | null;
  isLoading: boolean;
  reload: () => void;
}

/** `live` loads again when any job has changed; `once` only when `key` changes. */
export function useQuery<T>(
  key: string | null,
  load: (signal: AbortSignal) => Promise<T>,
  refresh: "live" | "once" = "live",
): Query<T> {
  const [state, setState] = useState<{ key: string | null; data: T | null; error: ApiError | null }>({
    key: null,
    data: null,
    error: null,
  });
  const [isLoading, setLoading] = useState(false);
  const [reloads, setReloads] = useState(0);
  const running = useRef<{ key: string; abort: AbortController; isStale: boolean } | null>(null);
  const at = refresh === "live" ? version.value : 0;
  useEffect(() => {
    if (key === null) return;
    // A slow answer is not replaced by the next look at the same; that follows.
    if (running.current?.key === key) {
      running.current.isStale = true;
      return;
    }
    running.current?.abort.abort();
    const own = { key, abort: new AbortController(), isStale: false };
    running.current = own;
    const isCurrent = () => running.current === own;
    setLoading(true);
    Promise.resolve()
      .then(() => load(own.abort.signal))
      .then((data) => isCurrent() && setState({ key, data, error: null }))
      .catch((error: ApiError) => {
        if (isCurrent()) setState((state) => ({ key, data: state.key === key ? state.data : null, error }));
      })
      .finally(() => {
        if (!isCurrent()) return;
        running.current = null;
        setLoading(false);
        if (own.isStale) setReloads((n) => n + 1);
      });
  }, [key, at, reloads]);
  useEffect(() => () => running.current?.abort.abort(), []);
  const isCurrent = state.key === key;
  return {
    data: isCurrent ? state.data : null,
    error: isCurrent ? state.error : null,
    isLoading,
    reload: () => setReloads((n) => n + 1),
  };
}
