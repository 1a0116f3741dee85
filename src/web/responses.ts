import type { ServerResponse } from 'node:http';
import { pipeline, Readable } from 'node:stream';

/** Who does not take any of what it asked for is let go after so long: what is sent is kept until it is taken. */
export const SLOW_READER_MS = 30_000;

export function send(response: ServerResponse, body: string | Buffer, slowMs = SLOW_READER_MS): void {
  letGoWhenSlow(response, slowMs);
  response.end(body);
}

export function sendText(response: ServerResponse, status: number, text: string): void {
  if (response.headersSent) return void response.end();
  response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8' });
  send(response, `${text}\n`);
}

export function sendJson(response: ServerResponse, status: number, value: object): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' });
  send(response, toJson(value));
}

/** Line by line, as they are taken; `lines` may change meanwhile. */
export function sendLines(response: ServerResponse, lines: readonly string[], slowMs = SLOW_READER_MS): void {
  letGoWhenSlow(response, slowMs);
  const all = lines.slice();
  const ended = Readable.from(
    (function* () {
      for (const line of all) yield `${line}\n`;
    })(),
  );
  // Who hangs up wants no more.
  pipeline(ended, response, () => undefined);
}

function letGoWhenSlow(response: ServerResponse, slowMs: number): void {
  response.setTimeout(slowMs, () => response.destroy());
}

/** Numbers beyond 2^53 are told as near as JavaScript has them. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one));
}
