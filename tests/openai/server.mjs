// Starts and ends `weft serve` for the tests.
import { spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';

const kStartMs = 60_000;

export class Server {
  /** Resolves once the server is ready; `args` follow `weft serve`. */
  static async start(binary, args) {
    const server = new Server();
    server.child = spawn(binary, ['serve', ...args, '--port', '0'], { stdio: ['ignore', 'ignore', 'pipe'] });
    server.log = '';
    server.exited = new Promise((resolve) => server.child.once('exit', resolve));
    server.child.stderr.on('data', (data) => (server.log += data));
    const end = Date.now() + kStartMs;
    while (Date.now() < end) {
      server.url ??= /listening on (http:\/\/[\d.]+:\d+)/.exec(server.log)?.[1];
      if (server.url && server.log.includes('Application startup complete')) return server;
      if (server.child.exitCode !== null) break;
      await sleep(50);
    }
    server.child.kill('SIGKILL');
    throw new Error(`weft serve ${args.join(' ')} did not start:\n${server.log}`);
  }

  /** Value of a gauge or counter, summed over its labels. */
  async metric(name, headers = {}) {
    const text = await (await fetch(`${this.url}/metrics`, { headers })).text();
    const lines = text.split('\n').filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
    if (lines.length === 0) throw new Error(`/metrics has no ${name}`);
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }

  /** Resolves with the milliseconds until a metric had the value. */
  async reaches(name, value, { timeoutMs = 5000, headers = {} } = {}) {
    const begin = Date.now();
    while ((await this.metric(name, headers)) !== value) {
      if (Date.now() - begin > timeoutMs) throw new Error(`${name} is not ${value} after ${timeoutMs} ms`);
      await sleep(5);
    }
    return Date.now() - begin;
  }

  /** SIGTERM; the exit code. */
  async stop() {
    if (this.child.exitCode !== null) throw new Error('the server ended before the tests did');
    this.child.kill('SIGTERM');
    return this.exited;
  }
}
