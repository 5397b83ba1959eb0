# Outlives its owner by a moment, to end what the owner started.
#
# Reads orders, one line each, from a pipe that the owner holds, and answers each with one line.
# When the pipe ends, however the owner died, it ends the process and removes the folder.
#
# $1: folder, made here and removed here; $2: the signal by which the process is asked to end;
# $3: what else to do when the process is gone, before the folder is removed.
folder=$1 farewell=$2 epilogue=$3
process=

umask 022
if ! why=$(mkdir -m 711 -- "$folder" 2>&1); then
    echo "$why"
    exit 1
fi
cd "$folder" || exit 1
exec 2>>"$folder/log"

# A caught signal, unlike an ignored one, is back to its default in the processes started here.
trap : PIPE
trap 'exit 1' HUP INT TERM
trap finish EXIT

# The children of the process: a server's own workers, which a signal to the server does not reach.
children() {
    for stat in /proc/[0-9]*/stat; do
        read -r pid rest 2>/dev/null <"$stat" || continue
        rest=${rest##*) }
        rest=${rest#* }
        [ "${rest%% *}" != "$process" ] || echo "$pid"
    done
}

# run COMMAND...: runs it to its end; answers its exit status.
run() {
    "$@" </dev/null >>"$folder/log" 2>&1
    echo "$?"
}

# serve COMMAND...: starts the process; answers its process id.
serve() {
    end_process
    "$@" </dev/null >>"$folder/log" 2>&1 &
    process=$!
    echo "$process"
}

# send SIGNAL: to the process and its children; answers 0 when there was one.
send() {
    [ -n "$process" ] || { echo 1; return; }
    case $1 in
        # Frozen first, so that no child can be born between looking and signalling.
        STOP | KILL) kill -s STOP "$process" ;;
    esac
    kill -s "$1" "$process" $(children)
    sent=$?
    [ "$1" != KILL ] || forget
    echo "$sent"
}

# end: ends the process politely; answers 0 when it is gone.
end() {
    end_process
    echo 0
}

end_process() {
    [ -n "$process" ] || return 0
    family=$(children)
    kill -s "$farewell" "$process" $family
    kill -s CONT "$process" $family
    rounds=0
    while kill -s 0 "$process" && [ "$rounds" -lt 150 ]; do
        sleep 0.02
        rounds=$((rounds + 1))
    done 2>/dev/null
    kill -s KILL "$process" $family
    forget
}

forget() {
    wait "$process"
    process=
}

finish() {
    trap '' HUP INT TERM
    end_process
    eval "$epilogue"
    cd /
    # A grandchild may write its last file while the folder goes.
    rm -rf -- "$folder" || { sleep 0.2; rm -rf -- "$folder"; }
}

echo ready
while IFS= read -r order; do
    eval "$order"
done
