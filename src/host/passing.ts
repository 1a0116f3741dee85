/** An open image that another process has passed, with the locks that it has on it. */
export interface PassedFile {
  readonly fd: number;
  readonly path: string;
  readonly writable: boolean;
  readonly direct: boolean;
  /** Bytes on which the open file has a shared lock; they stay until whoever has it now lets them go. */
  readonly locked: readonly number[];
}

/** What a driver has of a node in memory that neither the node's options nor its images say. */
export interface PassedMemory {
  /** Plain JSON. */
  readonly data: object;
  /** Long ones: bits of bitmaps. */
  readonly parts: readonly Uint8Array[];
}

/** A listening socket, by the addresses that it was asked for and bound to (SocketAddress as JSON). */
export interface PassedListener {
  readonly names: readonly string[];
  readonly fd: number;
}

/** Whoever has the other end of a unix socket. */
export interface HostPeer {
  readonly pid: number;
  /** It is a process of this process's user. */
  readonly isSameUser: boolean;
  /** Ends it at once; it makes no further call. */
  kill(): void;
  /** Asks it to end. */
  terminate(): void;
  /** It is to do nothing until goOn() or kill(); what it was about to do it may do before isStopped. */
  stop(): void;
  /** Also when it has ended. */
  readonly isStopped: boolean;
  goOn(): void;
}

/**
 * What a process takes over from another one, open, in the place of what it would open itself. Descriptors stay whose they
 * are until they are passed; one that was taken is the taker's.
 */
export interface HostPassing {
  /** Another process may have all of it still: nothing is written. */
  isTaking: boolean;
  /** By the names of their nodes. */
  readonly files: Map<string, PassedFile>;
  /** By the names of their nodes, as long as these are made. */
  readonly memories: Map<string, PassedMemory>;
  /** Sockets on which this process listens. */
  listeners(): PassedListener[];
  /** Who connects is told of and not served, until release(). Those stay open here. */
  hold(onConnection: (connection: PassedListener) => void): void;
  /** Those that were held are served. */
  release(): void;
  /** A socket that is taken when one of its names is asked for, and listened on after begin(). */
  addListener(listener: PassedListener): void;
  /** Whether one waits to be listened on by that name. */
  hasListener(name: string): boolean;
  /** From now on those that were passed are listened on. */
  begin(): void;
  /** A connection that came in on a socket that was passed. False: nobody listens there. */
  deliver(connection: PassedListener): boolean;
}
