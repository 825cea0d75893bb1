/** The peer of every figure: nginx proxying to nginx, in the same run on the same machine. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export interface Nginx {
  readonly url: string
  readonly version: string
  readonly pid: number
  close(): Promise<void>
}

/** undefined where nginx is not installed. `files` are served below `/repository/raw/`. */
export async function startNginx(
  folder: string,
  files: ReadonlyMap<string, Buffer>,
  ports: [number, number],
): Promise<Nginx | undefined> {
  const version = installedVersion()
  if (version === undefined) return undefined
  const root = join(folder, 'www')
  await mkdir(join(root, 'repository/raw/bench'), { recursive: true })
  for (const [name, body] of files) await writeFile(join(root, 'repository/raw', name), body)
  const config = join(folder, 'nginx.conf')
  await writeFile(config, configText(folder, root, ports))
  const child = spawn('nginx', ['-c', config], { stdio: 'ignore' })
  const url = `http://127.0.0.1:${ports[0]}`
  for (let tries = 0; tries < 100; tries++) {
    if (
      await fetch(url, { method: 'HEAD' }).then(
        () => true,
        () => false,
      )
    )
      break
    await sleep(50)
  }
  return { url, version, pid: child.pid ?? 0, close: () => end(child) }
}

/** nginx says it on stderr. */
function installedVersion(): string | undefined {
  const { error, stderr } = spawnSync('nginx', ['-v'], { encoding: 'utf8' })
  return error === undefined ? stderr.replace('nginx version: ', '').trim() : undefined
}

async function end(child: ChildProcess): Promise<void> {
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  await ended
}

function configText(folder: string, root: string, [front, back]: [number, number]): string {
  // The folder is private: as root its workers must stay root to read it.
  const user = process.getuid?.() === 0 ? 'user root;' : ''
  return `${user} worker_processes 2; daemon off; pid ${folder}/nginx.pid; error_log ${folder}/error.log;
events { worker_connections 2048; }
http {
  access_log off; sendfile on; keepalive_requests 100000000;
  client_body_temp_path ${folder}/body; proxy_temp_path ${folder}/proxy; fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi; scgi_temp_path ${folder}/scgi;
  upstream storage { server 127.0.0.1:${back}; keepalive 128; }
  server { listen 127.0.0.1:${front}; location / { proxy_pass http://storage; proxy_http_version 1.1; proxy_set_header Connection ""; } }
  server { listen 127.0.0.1:${back}; root ${root}; }
}
`
}
