import type { FileTaker } from '../../base/io-request.js';
import type { Request } from './codec.js';
import type { ServerReplies } from './server-replies.js';

/** The reply to one read at a time, should the target have a file to send. */
export class FileReply implements FileTaker {
  readonly #replies: ServerReplies;
  #request!: Request;
  isSent = false;

  constructor(replies: ServerReplies) {
    this.#replies = replies;
  }

  of(request: Request): this {
    this.#request = request;
    this.isSent = false;
    return this;
  }

  takeFrom(file: object, position: number): boolean {
    this.isSent = this.#replies.sendFile(this.#request, file, position);
    return this.isSent;
  }
}
