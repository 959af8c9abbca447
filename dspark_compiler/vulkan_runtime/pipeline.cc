#include "pipeline.h"

#include <vector>

#include "cache_file.h"
#include "device.h"
#include "errors.h"

namespace dspark::vulkan {
namespace {

// The number of the constant by which kernels are told whether launches overlap; the others have none.
constexpr uint32_t kOverlapsConstant = 0;

}  // namespace

Pipeline::Pipeline(Pipelines& owner, VkPipeline handle) : owner_(&owner), handle_(handle) {
  owner.alive_.insert(this);
}

Pipeline::~Pipeline() {
  if (owner_ != nullptr) owner_->Destroy(this);
}

Pipelines::Pipelines(Device& device) : device_(device), file_(CacheFile(device.capabilities.properties)) {
  const DeviceFunctions& vk = device_.functions;
  const std::vector<char> kept = ReadCache(file_);
  VkPipelineCacheCreateInfo cache{VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
  cache.initialDataSize = kept.size();
  cache.pInitialData = kept.data();
  device_.Check(vk.CreatePipelineCache(device_.handle, &cache, nullptr, &cache_), "vkCreatePipelineCache");
  const VkPushConstantRange pushed{VK_SHADER_STAGE_COMPUTE_BIT, 0, kMaxPushBytes};
  VkPipelineLayoutCreateInfo layout{VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO};
  layout.pushConstantRangeCount = 1;
  layout.pPushConstantRanges = &pushed;
  device_.Check(vk.CreatePipelineLayout(device_.handle, &layout, nullptr, &layout_), "vkCreatePipelineLayout");
}

Pipelines::~Pipelines() {
  Save();
  const DeviceFunctions& vk = device_.functions;
  for (Pipeline* pipeline : alive_) {
    vk.DestroyPipeline(device_.handle, pipeline->handle_, nullptr);
    pipeline->owner_ = nullptr;
  }
  vk.DestroyPipelineLayout(device_.handle, layout_, nullptr);
  vk.DestroyPipelineCache(device_.handle, cache_, nullptr);
}

void Pipelines::Destroy(Pipeline* pipeline) {
  alive_.erase(pipeline);
  device_.functions.DestroyPipeline(device_.handle, pipeline->handle_, nullptr);
}

std::string Pipelines::Missing(const Kernel& kernel) const {
  const Capabilities& has = device_.capabilities;
  const VkPhysicalDeviceLimits& limits = has.properties.limits;
  for (const std::string& feature : kernel.features) {
    if (!has.Has(feature)) return "needs " + feature + ", which the device lacks";
  }
  const uint64_t threads = uint64_t{kernel.workgroup[0]} * kernel.workgroup[1] * kernel.workgroup[2];
  if (threads > limits.maxComputeWorkGroupInvocations) {
    return "needs " + std::to_string(threads) + " threads a workgroup, the device has at most " +
           std::to_string(limits.maxComputeWorkGroupInvocations);
  }
  for (int i = 0; i < 3; ++i) {
    if (kernel.workgroup[i] > limits.maxComputeWorkGroupSize[i]) {
      return "needs a workgroup " + std::to_string(kernel.workgroup[i]) + " wide, the device has at most " +
             std::to_string(limits.maxComputeWorkGroupSize[i]);
    }
  }
  if (kernel.shared_bytes > limits.maxComputeSharedMemorySize) {
    return "needs " + std::to_string(kernel.shared_bytes) + " bytes of shared memory, the device has " +
           std::to_string(limits.maxComputeSharedMemorySize);
  }
  const bool settable = has.min_subgroup_size <= kernel.subgroup && kernel.subgroup <= has.max_subgroup_size;
  if (kernel.subgroup != 0 && kernel.subgroup != has.subgroup_size && !settable) {
    return "needs subgroups of " + std::to_string(kernel.subgroup) + ", the device has them of " +
           std::to_string(has.subgroup_size);
  }
  return "";
}

void Pipelines::Require(const Kernel& kernel) const {
  const std::string missing = Missing(kernel);
  if (!missing.empty()) device_.Refuse("kernel " + kernel.name + " " + missing);
}

std::shared_ptr<Pipeline> Pipelines::Create(const Kernel& kernel) {
  Require(kernel);
  const DeviceFunctions& vk = device_.functions;
  VkShaderModuleCreateInfo code{VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO};
  code.codeSize = kernel.spirv_bytes;
  code.pCode = kernel.spirv;
  VkShaderModule shader = VK_NULL_HANDLE;
  VkResult result = vk.CreateShaderModule(device_.handle, &code, nullptr, &shader);
  VkPipeline handle = VK_NULL_HANDLE;
  if (result == VK_SUCCESS) {
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size{
        VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO};
    size.requiredSubgroupSize = kernel.subgroup;
    const VkBool32 overlaps = Overlaps(device_.capabilities);
    const VkSpecializationMapEntry told{kOverlapsConstant, 0, sizeof(overlaps)};
    const VkSpecializationInfo constants{1, &told, sizeof(overlaps), &overlaps};
    VkComputePipelineCreateInfo info{VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO};
    info.stage.pSpecializationInfo = &constants;
    info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
    info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
    info.stage.module = shader;
    info.stage.pName = "main";
    info.layout = layout_;
    if (kernel.subgroup != 0 && device_.capabilities.max_subgroup_size != 0) info.stage.pNext = &size;
    if (kernel.subgroup != 0 && device_.capabilities.has_full_subgroups) {
      info.stage.flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    }
    result = vk.CreateComputePipelines(device_.handle, cache_, 1, &info, nullptr, &handle);
  }
  vk.DestroyShaderModule(device_.handle, shader, nullptr);
  if (result != VK_SUCCESS) {
    if (result == VK_ERROR_DEVICE_LOST) device_.Check(result, "vkCreateComputePipelines");
    device_.Refuse("kernel " + kernel.name + ": the driver could not compile it: " + Describe(result));
  }
  changed_ = true;
  return std::make_shared<Pipeline>(*this, handle);
}

void Pipelines::Save() {
  if (!changed_ || file_.empty() || device_.lost()) return;
  const DeviceFunctions& vk = device_.functions;
  size_t size = 0;
  vk.GetPipelineCacheData(device_.handle, cache_, &size, nullptr);
  std::vector<char> data(size);
  if (vk.GetPipelineCacheData(device_.handle, cache_, &size, data.data()) != VK_SUCCESS) return;
  data.resize(size);
  WriteCache(file_, data);
  changed_ = false;
}

}  // namespace dspark::vulkan
