INSERT INTO tasks (task_type, params, status)
VALUES (
  'comfy',
  '{
    "workflow": {
      "1": {
        "inputs": {
          "video": "input.mp4",
          "force_rate": 0,
          "custom_width": 0,
          "custom_height": 0,
          "frame_load_cap": 0,
          "skip_first_frames": 0,
          "select_every_nth": 1
        },
        "class_type": "VHS_LoadVideo"
      },
      "2": {
        "inputs": {
          "images": ["1", 0],
          "frame_rate": 30,
          "format": "video/h264-mp4",
          "save_output": true,
          "pingpong": false
        },
        "class_type": "VHS_VideoCombine"
      }
    },
    "video_url": "https://example.com/input.mp4",
    "video_node_id": "1",
    "video_input_field": "video"
  }',
  'queued'
);
