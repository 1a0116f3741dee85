import { useEffect, useRef, useState } from 'preact/hooks';
import { ask } from './store.js';

/** What is there of an answer: it, why there is none, or nothing yet. */
export interface Answer<T> {
  readonly answer?: T;
  readonly error?: string;
}

interface Numbered<T> extends Answer<T> {
  readonly request: string;
  readonly number: number;
}

/**
 * What the server says to a request, if there is one, asked for anew when `turn` changes. Of another request, or of one
 * before that which is late, nothing is shown.
 */
export function useAnswer<T>(what: string, body: object | undefined, turn: unknown): Answer<T> {
  const request = body && `${what} ${JSON.stringify(body)}`;
  const [last, setLast] = useState<Numbered<T>>();
  const asked = useRef(0);
  useEffect(() => {
    if (!body || request === undefined) return;
    const number = ++asked.current;
    const tell = (told: Answer<T>): void =>
      setLast((before) => (before && before.number > number ? before : { ...told, request, number }));
    ask<T>(what, body).then(
      (answer) => tell({ answer }),
      (reason: Error) => tell({ error: reason.message }),
    );
  }, [request, turn]);
  return last && last.request === request ? last : {};
}
