/** What is asked of a web server. */
export interface HttpQuestion {
  method: 'GET' | 'HEAD';
  /** http or https, without user and password. */
  url: URL;
  headers: Readonly<Record<string, string>>;
  /** After so long a silence it fails; 0: never. */
  timeoutMs: number;
}

/** The beginning of an answer. Names of headers are in small letters. */
export interface HttpHead {
  status: number;
  headers: Readonly<Record<string, string | undefined>>;
}

/** Takes the pieces of an answer's body; a piece is only valid during the call. */
export type HttpTaker = (chunk: Buffer) => void;

/** Connections to web servers, which are used again. */
export interface HttpClient {
  /**
   * Resolves at the end of the body. `onHead` says who takes it: nobody, and the rest of it is not waited for. What `onHead`
   * or the taker throws ends the request with that. Errors: kind by cause, in curl's words.
   */
  request(question: HttpQuestion, onHead: (head: HttpHead) => HttpTaker | undefined): Promise<void>;
  /** What is in flight fails with ECANCELED, and all that comes later. */
  close(): void;
}

export interface HttpClientOptions {
  /** The server's certificate must be signed by someone whom this machine trusts, and name the server. */
  verifiesPeer: boolean;
  maxConnections: number;
}

export interface HostHttp {
  client(options: HttpClientOptions): HttpClient;
}
